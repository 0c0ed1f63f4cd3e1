"""Several submitters of the same stages: each stage is made once; one that was stopped for too long does no harm."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import submitters
import toy_kinds
from submitters import FINGERPRINT, HELD, MOMENTS, STEPS
from toy_kinds import SHAPES, count, wait

from orchestrator.engine.local import LocalExecutor
from orchestrator.engine.observe import Observers, RunResult
from orchestrator.engine.scheduler import Policy, Scheduler
from orchestrator.store.artifacts import Store
from orchestrator.store.events import EventReader, curves
from orchestrator.store.runs import create_run

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path) -> str:
    (tmp_path / "trace").mkdir()
    return str(tmp_path / "store") if request.param == "local" else request.getfixturevalue("s3_root")


@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.parametrize("shape", ["one", "chain", "diamond", "islands"])
def test_simultaneous_submitters_make_each_stage_once_and_get_equal_results(shape, number, root, tmp_path):
    barrier, results = threading.Barrier(number), list[RunResult]()

    def submit() -> None:
        plan, store = toy_kinds.plan(SHAPES[shape], tmp_path / "trace"), Store.open(root)
        policy = Policy(poll_s=0.02, elsewhere_s=0.05)
        run = create_run(store, "toys", "", {})
        scheduler = Scheduler(plan, store, LocalExecutor(), run, Observers([], lambda text: None), policy)
        barrier.wait()
        results.append(scheduler.run())

    threads = [threading.Thread(target=submit) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.ok for result in results] == [True] * number
    for name in SHAPES[shape]:
        assert count(tmp_path / "trace", name) == 1
        assert len({result.manifests[name].content_digest for result in results}) == 1
        assert sorted(result.stages[name].state for result in results) == ["cached"] * (number - 1) + ["done"]


TTL_S = {"local": 1.0, "s3": 2.5}
"""An S3 server's clock ticks in seconds."""


@contextmanager
def stopped_at(moment: str, root: str, trace: Path, ttl_s: float) -> Iterator[psutil.Process]:
    """A submitter that has stopped, past its lease's time to live when it is waited for by another."""
    process = submitters.start(root, trace, ttl_s, moment if moment in MOMENTS else "")
    try:
        watched = psutil.Process(process.pid)
        if moment not in MOMENTS:
            wait(lambda: any(trace.glob("*.held")))
            process.send_signal(signal.SIGSTOP)
        wait(lambda: watched.status() == psutil.STATUS_STOPPED)
        yield process
    finally:
        process.kill()
        process.communicate()


def everything_but_the_first(root: str) -> dict[str, str | None]:
    """What lies in the store, but for what the first submitter may write: its generation, its attempt, its run."""
    mine = (f"leases/{FINGERPRINT}/1", f"work/{FINGERPRINT}/1/", f"walker/{FINGERPRINT}/attempts/0001-", "runs/")
    infos = Store.open(root).storage.list("")
    return {info.key: info.etag for info in infos if not info.key.startswith(mine) and "/probe-" not in info.key}


WHILE_AT_WORK = [("in the middle of its work", "local"), ("in the middle of its work", "s3")]
WHILE_AT_WORK += [(moment, "local") for moment in MOMENTS if "publish" not in moment]


@pytest.mark.parametrize(("moment", "place"), WHILE_AT_WORK)
def test_a_submitter_that_wakes_while_another_has_its_stage_leaves_it_alone(moment, place, tmp_path, request):
    root = str(tmp_path / "store") if place == "local" else request.getfixturevalue("s3_root")
    trace = tmp_path / "trace"
    trace.mkdir()
    second = list[RunResult]()
    with stopped_at(moment, root, trace, TTL_S[place]) as first:
        held = len(list(trace.glob("*.held")))
        thread = threading.Thread(target=lambda: second.append(submitters.submit(root, str(trace), TTL_S[place])))
        thread.start()
        wait(lambda: len(list(trace.glob("*.held"))) > held)
        before = everything_but_the_first(root)
        first.send_signal(signal.SIGCONT)
        wait(lambda: state_of(root, first.pid) == "elsewhere")
        after = everything_but_the_first(root)
        work = f"work/{FINGERPRINT}/2"
        moving = (
            f"leases/{FINGERPRINT}/2",
            f"{work}/events",
            f"{work}/logs",
            "runs/",
        )  # what the second goes on writing
        assert {k: v for k, v in before.items() if not k.startswith(moving)} == {
            k: v for k, v in after.items() if not k.startswith(moving)
        }
        (trace / "go").touch()
        thread.join()
        out, err = first.communicate(timeout=60)
    assert json.loads(out) == {"walk": "cached"}, err
    assert second[0].stages["walk"].state == "done"
    assert second[0].manifests["walk"].generation == 2
    is_whole(root)
    for step in (HELD, STEPS - 1):
        assert len(list(trace.glob(f"*.step{step}"))) == 1
    assert len(list(trace.glob("*.begun"))) == 2


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_submitter_that_wakes_when_all_is_done_takes_the_others_result(place, tmp_path, request):
    root = str(tmp_path / "store") if place == "local" else request.getfixturevalue("s3_root")
    trace = tmp_path / "trace"
    trace.mkdir()
    with stopped_at("in the middle of its work", root, trace, TTL_S[place]) as first:
        (trace / "go").touch()
        second = submitters.submit(root, str(trace), TTL_S[place])
        before = everything_but_the_first(root)
        first.send_signal(signal.SIGCONT)
        out, err = first.communicate(timeout=60)
    assert json.loads(out) == {"walk": "cached"}, err
    assert second.stages["walk"].state == "done"
    assert everything_but_the_first(root) == before
    is_whole(root)


def test_one_that_wakes_between_its_check_and_its_publication_deletes_nothing_of_the_others(tmp_path):
    """Its manifest may win, for its work is whole; what its successor works with must stay."""
    root, trace = str(tmp_path / "store"), tmp_path / "trace"
    trace.mkdir()
    (trace / "go").touch()
    second = list[RunResult]()
    with stopped_at("when it has checked its lease and is about to publish", root, trace, 1.0) as first:
        (trace / "go").unlink()
        for info in Store.open(root).storage.list(f"work/{FINGERPRINT}/1"):  # so that the second has to work
            if "/ckpt-6/" in info.key or "/ckpt-5/" in info.key:
                Store.open(root).storage.delete(info.key)
        thread = threading.Thread(target=lambda: second.append(submitters.submit(root, str(trace), 1.0)))
        thread.start()
        wait(lambda: len(list(trace.glob("*.held"))) == 2)
        before = everything_but_the_first(root)
        first.send_signal(signal.SIGCONT)
        out, err = first.communicate(timeout=60)
        after = everything_but_the_first(root)
        (trace / "go").touch()
        thread.join()
    assert json.loads(out) == {"walk": "done"}, err
    assert {key for key in before if "/ckpt-" in key} <= set(after)
    assert second[0].ok
    assert second[0].manifests["walk"].generation == 1
    assert Store.open(root).handle("walker", FINGERPRINT).read("way") == b"0 1 2 3 4 5"


def state_of(root: str, pid: int) -> str | None:
    """The state in which a process's run has recorded the stage."""
    storage = Store.open(root).storage
    found = [json.loads(storage.get(i.key)) for i in storage.list("runs") if i.key.endswith("/state.json")]
    return next((state["stages"]["walk"]["state"] for state in found if state.get("pid") == pid), None)


def is_whole(root: str) -> None:
    """The result is whole, and its curve has each point once."""
    store = Store.open(root)
    assert store.handle("walker", FINGERPRINT).read("way").decode().split() == [str(n) for n in range(STEPS)]
    points = curves(EventReader(store.storage, FINGERPRINT).poll())["loss"]
    assert [samples for samples, _ in points] == list(range(1, STEPS + 1))
