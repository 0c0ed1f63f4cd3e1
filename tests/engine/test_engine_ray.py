"""The real local cluster, started once: named tasks side by side, a killed worker, a killed submitter, the dashboard's
door.
"""

from __future__ import annotations

import http.cookiejar
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import toy_kinds
from test_engine_index import write_pool
from toy_kinds import count, wait

from orchestrator.data import source
from orchestrator.engine import cluster, ui
from orchestrator.io.storage import Storage
from orchestrator.store.artifacts import Store

pytestmark = [pytest.mark.ray, pytest.mark.timeout(150)]


@pytest.fixture(scope="module")
def local_cluster(tmp_path_factory):
    home = tmp_path_factory.mktemp("orch-home")
    token = home / "token"
    token.write_text(secrets.token_hex(32))
    patch = pytest.MonkeyPatch()
    patch.setenv("ORCH_HOME", str(home))
    patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        patch.delenv(name, raising=False)
    said: list[str] = []
    started = cluster.start(said.append, num_cpus=2, idle_minutes=2)
    assert said == ["starting the local Ray cluster (about 10 s)"]
    yield started
    import ray

    ray.shutdown()
    cluster.down()
    patch.undo()
    assert not Path(f"/proc/{started.pid}").exists() or "Z" in Path(f"/proc/{started.pid}/stat").read_text()


def submitter(root: Path, behaviours: dict[str, str], shape: dict[str, list[str]]) -> subprocess.Popen:
    """A process that submits toys to the cluster; its output is JSON of the stages' states."""
    root.mkdir(exist_ok=True)
    (root / "trace").mkdir(exist_ok=True)
    command = [sys.executable, str(Path(toy_kinds.__file__).with_name("submit_toys.py")), str(root)]
    arguments = [json.dumps(behaviours), json.dumps(shape)]
    return subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    return json.loads(out)


def dashboard(started: cluster.LocalCluster, path: str) -> dict:
    """The dashboard's answer over HTTP, with the token."""
    headers = {"Authorization": f"Bearer {cluster.token_value(started)}"}
    with urllib.request.urlopen(urllib.request.Request(started.dashboard_url + path, headers=headers)) as answer:
        return json.load(answer)


def test_stages_run_side_by_side_as_tasks_named_by_the_stage(local_cluster, tmp_path):
    shape = {"left": [], "right": [], "both": ["left", "right"]}
    process = submitter(tmp_path, {"left": "waits_for_file", "right": "waits_for_file"}, shape)
    trace = tmp_path / "trace"
    wait(lambda: count(trace, "left") == 1 and count(trace, "right") == 1)
    pids = {path.read_text() for path in trace.glob("*.started")}
    assert len(pids) == 2

    def tasks() -> dict[str, str]:
        rows = dashboard(local_cluster, "/api/v0/tasks?detail=1")["data"]["result"]["result"]
        return {row["name"]: row["state"] for row in rows}

    wait(lambda: {"left", "right"} <= set(tasks()), timeout_s=20)
    (trace / "go").touch()
    states = outcome(process)
    assert states["states"] == {"left": "done", "right": "done", "both": "done"}
    assert states["events"]["left"] == ["progress", "progress"]
    assert states["logs"]["left"] == "hello from left\n"


def test_a_killed_worker_is_replaced_and_its_stage_finishes(local_cluster, tmp_path):
    process = submitter(tmp_path, {"a": "waits_for_file"}, {"a": []})
    trace = tmp_path / "trace"
    wait(lambda: count(trace, "a") == 1)
    os.kill(int(next(trace.glob("a-*.started")).read_text()), signal.SIGKILL)
    wait(lambda: count(trace, "a") == 2)
    (trace / "go").touch()
    states = outcome(process)
    assert states["states"] == {"a": "done"}
    assert states["attempts"] == {"a": 2}


def test_a_worker_that_is_told_to_end_makes_way_and_its_stage_goes_on_in_another(local_cluster, tmp_path):
    process = submitter(tmp_path, {"a": "waits_for_file"}, {"a": []})
    trace = tmp_path / "trace"
    wait(lambda: count(trace, "a") == 1)
    told = int(next(trace.glob("a-*.started")).read_text())
    os.kill(told, signal.SIGTERM)
    wait(lambda: count(trace, "a") == 2)
    wait(lambda: not Path(f"/proc/{told}").exists(), timeout_s=20)
    (trace / "go").touch()
    states = outcome(process)
    assert states["states"] == {"a": "done"}
    assert states["attempts"] == {"a": 2}
    assert "message" in states["events"]["a"]
    assert "preempted\n" in states["logs"]["a"]


def test_after_kill_9_of_the_submitter_its_worker_ends_and_submitting_again_goes_on(local_cluster, tmp_path):
    process = submitter(tmp_path, {"a": "waits_for_file"}, {"a": []})
    trace = tmp_path / "trace"
    wait(lambda: count(trace, "a") == 1)
    worker = int(next(trace.glob("a-*.started")).read_text())
    process.kill()
    process.communicate()
    (trace / "go").touch()
    states = outcome(submitter(tmp_path, {"a": "waits_for_file"}, {"a": []}))
    assert states["states"] == {"a": "done"}
    wait(lambda: not Path(f"/proc/{worker}").exists(), timeout_s=20)
    assert cluster.recorded() is not None


def test_ctrl_c_stops_stages_cleanly_and_says_how_to_go_on(local_cluster, tmp_path):
    process = submitter(tmp_path, {"a": "waits_for_stop"}, {"a": [], "b": ["a"]})
    wait(lambda: count(tmp_path / "trace", "a") == 1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert json.loads(out)["states"] == {"a": "stopped", "b": "stopped"}
    assert "Ctrl-C again ends them now" in err
    assert "go on with: orch submit toys.yaml" in err


def test_a_browser_gets_past_the_token_once_by_the_login_page(local_cluster):
    jar = http.cookiejar.CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    pages: list[str] = []
    seen: list[tuple[str, int]] = []

    def visit(url: str) -> None:
        answer = browser.open(url)
        seen.append((answer.url.rstrip("/"), browser.open(local_cluster.dashboard_url + "/api/v0/tasks").status))

    def open_in_browser(url: str) -> bool:
        pages.append(url)
        threading.Thread(target=visit, args=(url,)).start()
        return True

    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(local_cluster.dashboard_url + "/api/v0/tasks")
    said: list[str] = []
    ui.open_ui(said.append, open_in_browser, timeout_s=20)
    wait(lambda: bool(seen), timeout_s=20)
    assert seen == [(local_cluster.dashboard_url, 200)]
    token = cluster.token_value(local_cluster)
    assert token not in pages[0] + "".join(said)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(pages[0], timeout=2)


def test_a_second_start_finds_the_first(local_cluster):
    assert cluster.start() == local_cluster


@pytest.mark.parametrize("by", ["", "headers:"], ids=["content", "headers"])
def test_what_every_machine_sees_is_indexed_by_tasks_that_get_our_credentials(local_cluster, tmp_path, s3_root, by):
    pool = write_pool(tmp_path / "pool", 20)
    remote = Storage.open(f"{s3_root}/pool")
    for path in pool.iterdir():
        remote.put(path.name, path)
    command = [sys.executable, str(Path(__file__).with_name("index_on_ray.py")), f"{s3_root}/store"]
    out = subprocess.run([*command, f"{by}{remote.url}"], capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr
    expected = source.prepare(f"{by}{pool}", Store.open(str(tmp_path / "store")))
    assert out.stdout.splitlines()[-1] == expected
    rows = []

    def seen() -> bool:  # late, and not all: what the last second did is lost with its workers
        rows[:] = dashboard(local_cluster, "/api/v0/tasks?detail=1&limit=10000")["data"]["result"]["result"]
        names = [row["name"] for row in rows if row["state"] == "FINISHED"]
        return names.count("index shards") >= 2

    wait(seen, timeout_s=30)
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in json.dumps(rows)
