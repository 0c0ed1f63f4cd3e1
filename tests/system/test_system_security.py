"""Nothing of this machine's cluster can be reached from another, and no planted secret is anywhere but in the
environment: not in the store, logs, pages, records, Ray's own files, nor in a process list.
"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from system_orch import ROOT, Orch, S3Demo

from orchestrator.engine import cluster
from orchestrator.io.storage import Storage

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240, func_only=True)]

HERE = Path(__file__).parent
MARKER = "planted-marker-4c1d7e"
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
STATE = (
    "jobs",
    "actors",
    "tasks",
    "workers",
    "nodes",
    "objects",
    "placement_groups",
    "runtime_envs",
    "cluster_events",
)
PAGES = (
    *(f"/api/v0/{name}?detail=1&limit=10000" for name in STATE),
    "/api/jobs/",
    "/logical/actors",
    "/nodes?view=summary",
    "/nodes?view=details",
    "/events",
    "/api/train/v2/runs/v1",
    "/api/cluster_status?format=1",
    "/api/component_activities",
)


@dataclass
class Watch:
    """What can be seen from outside while things run: every command line, and where the cluster and others listen."""

    roots: set[int]
    command_lines: set[bytes] = field(default_factory=set)
    listening: dict[tuple[str, int], str] = field(default_factory=dict)
    """(address, port) -> the process."""

    def look(self) -> None:
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    self.command_lines.add((folder / "cmdline").read_bytes())
                except OSError:
                    continue

    def look_for_sockets(self) -> None:
        for root in list(self.roots):
            try:
                family = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
            except psutil.Error:
                continue
            for process in family:
                try:
                    self._listens(process)
                except psutil.Error:
                    continue

    def _listens(self, process: psutil.Process) -> None:
        for connection in process.net_connections(kind="inet"):
            bound_udp = connection.type.name == "SOCK_DGRAM" and not connection.raddr
            if connection.status == psutil.CONN_LISTEN or bound_udp:
                self.listening[connection.laddr] = " ".join(process.cmdline())

    def __enter__(self) -> Watch:
        self._over = threading.Event()

        def go_on() -> None:
            while not self._over.wait(0.03):
                self.look()

        def go_on_with_sockets() -> None:
            while not self._over.wait(0.5):
                self.look_for_sockets()

        self._threads = [threading.Thread(target=target) for target in (go_on, go_on_with_sockets)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


@dataclass(frozen=True)
class Seen:
    """All there is to search after everything ran."""

    watch: Watch
    said: dict[str, str]
    session: Path


@pytest.fixture(scope="module")
def seen(orch: Orch, s3_demo: S3Demo, tmp_path_factory) -> Seen:
    """The demo on S3 and two leaking stages; MLflow's page, the login page and what the commands say."""
    environment = s3_demo.orch.environment
    python_path = os.pathsep.join([str(HERE), str(ROOT)])
    leaks = [sys.executable, str(HERE / "security_leaks.py"), s3_demo.store, MARKER]
    said = {"submit": s3_demo.said.out + s3_demo.said.err}
    with Watch({orch.cluster().pid, os.getpid()}) as watch:
        done = subprocess.run(
            leaks,
            env={**environment, "PYTHONPATH": python_path},
            capture_output=True,
            text=True,
            timeout=120,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr
        said["leaks"] = done.stdout + done.stderr
        for arguments in (("status",), ("status", "last"), ("show", "last", "--json"), ("logs", "last", "tells")):
            said[" ".join(arguments)] = s3_demo.orch(*arguments, "--store", s3_demo.store).out
        orch.delivered()
        said["ui"] = opened(s3_demo.orch, s3_demo.store, orch, watch)
    return Seen(watch, said, session(orch))


def opened(command: Orch, store: str, orch: Orch, watch: Watch) -> str:
    """What `orch ui` says; its page is visited, which ends it."""
    process = command.start("ui", "--no-browser", "--store", store)
    lines: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if found := re.search(r"on this machine: (http://\S+)", line):
            watch.roots |= {process.pid, json.loads((orch.home / "mlflow.json").read_text())["pid"]}
            watch.look_for_sockets()
            request = urllib.request.build_opener(NoRedirect())
            with pytest.raises(urllib.error.HTTPError, match="302"):
                request.open(found[1], timeout=10)
    command.end(process, timeout_s=30)
    return "".join(lines)


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: object) -> None:
        return None


def session(orch: Orch) -> Path:
    """The folder of Ray's logs and sockets."""
    for process in psutil.Process(orch.cluster().pid).children(recursive=True):
        if found := re.search(r"--session-dir[= ](\S+)", " ".join(process.cmdline())):
            return Path(found[1])
    pytest.fail("no process of the cluster names its session's folder")


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield str(path), path.read_bytes()


def pages(orch: Orch, mlflow_url: str) -> Iterator[tuple[str, bytes]]:
    """Ray's dashboard with its token, its logs as it shows them, and MLflow's page."""
    found = orch.cluster()
    for path in PAGES:
        yield path, answer(found.dashboard_url + path, cluster.token_value(found))
    for path in ("/", "/version", "/ajax-api/2.0/mlflow/experiments/search?max_results=100"):
        yield path, answer(mlflow_url + path)
    body = json.dumps({"experiment_ids": [str(n) for n in range(20)], "max_results": 500}).encode()
    yield "runs/search", answer(mlflow_url + "/ajax-api/2.0/mlflow/runs/search", body=body)


def answer(url: str, token: str | None = None, body: bytes | None = None) -> bytes:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if body:
        headers["Content-Type"] = "application/json"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=20) as page:
            return page.read()
    except urllib.error.HTTPError as error:  # not every page answers; what an error says is searched too
        return error.read()


def everything(seen: Seen, orch: Orch, s3_demo: S3Demo) -> Iterator[tuple[str, bytes]]:
    """(where, bytes) of every place that a secret might have reached."""
    storage = Storage.open(s3_demo.store)
    for info in storage.list(""):
        yield storage.where(info.key), storage.get(info.key)
    secret_file = orch.cluster().token_path
    yield from ((where, data) for where, data in files(orch.home) if where != secret_file)
    yield from files(Path(s3_demo.orch.environment["ORCH_CACHE"]))
    yield from files(seen.session)
    yield from (("a process list", line) for line in seen.watch.command_lines)
    yield from ((f"orch {command}", text.encode()) for command, text in seen.said.items())
    yield from pages(orch, json.loads((orch.home / "mlflow.json").read_text())["url"])


@pytest.fixture(scope="module")
def found(seen, orch, s3_demo) -> dict[str, set[str]]:
    """What was searched for -> where it was found."""
    needles = {name: value.encode() for name, value in s3_demo.planted.items()}
    needles |= {"Ray's token": cluster.token_value(orch.cluster()).encode(), "marker": MARKER.encode()}
    patch = pytest.MonkeyPatch()
    for name, value in s3_demo.orch.environment.items():
        if name.startswith("AWS_"):
            patch.setenv(name, value)
    places: dict[str, set[str]] = {name: set() for name in needles}
    for where, data in everything(seen, orch, s3_demo):
        for name, value in needles.items():
            if value in data:
                places[name].add(where)
    patch.undo()
    return places


def test_the_search_finds_what_is_no_secret_in_every_kind_of_place(found, seen, orch, s3_demo):
    where = "\n".join(sorted(found["marker"]))
    for kind in (
        rf"^{s3_demo.store}/leaks/.*manifest\.json$",
        rf"^{s3_demo.store}/work/.*/events/",
        rf"^{s3_demo.store}/work/.*/logs/",
        rf"^{s3_demo.store}/runs/.*/state\.json$",
        rf"^{orch.home}/mlflow\.db",
        rf"^{seen.session}/logs/worker-.*\.out$",
        "^a process list$",
        "^/api/v0/tasks",
        "^runs/search$",
        "^orch leaks$",
        "^orch logs last tells$",
    ):
        assert re.search(kind, where, re.MULTILINE), f"the marker was not found in {kind}:\n{where}"


def test_planted_secrets_are_nowhere_but_in_the_environment(found):
    assert {name: sorted(where) for name, where in found.items() if where and name != "marker"} == {}


def test_redacted_text_stays_readable(seen):
    log = seen.said["logs last tells"]
    assert f"printed {MARKER} *** ***" in log
    assert f"child {MARKER} ***" in log


def test_every_socket_of_ray_mlflow_and_the_login_page_is_on_loopback(seen):
    processes = " ".join(seen.watch.listening.values())
    for expected in (
        "gcs_server",
        "raylet",
        "dashboard",
        "DashboardAgent",
        "RuntimeEnvAgent",
        "mlflow",
        "orchestrator ui",
    ):
        assert expected in processes
    assert {a: p for a, p in seen.watch.listening.items() if a[0] not in LOOPBACK} == {}


def test_tokens_and_folders_of_the_cluster_are_for_this_user_alone(seen, orch):
    token = Path(orch.cluster().token_path)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(seen.session.parents[1].stat().st_mode) == 0o700
    assert cluster.token_value(orch.cluster()) not in (orch.home / "cluster.json").read_text()


def test_without_the_token_ray_itself_refuses_a_driver(orch):
    found = orch.cluster()
    environment = {n: v for n, v in orch.environment.items() if not n.startswith("RAY_")}
    environment |= {"RAY_ADDRESS": found.address, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "HOME": "/nonexistent"}
    code = "import ray; ray.init(configure_logging=False); print('connected')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=90)
    assert done.returncode != 0
    assert "connected" not in done.stdout
    assert re.search(r"auth|token", done.stderr, re.IGNORECASE)
