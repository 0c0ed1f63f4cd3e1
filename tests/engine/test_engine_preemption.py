"""Stages that make way: what the scheduler counts, how long it goes on, and what a person is told."""

from __future__ import annotations

import io
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import toy_kinds
from rich.console import Console
from test_engine_scheduler import QUICK, Recorder, scheduler, states
from toy_kinds import count, wait

from orchestrator.engine.executor import Capacity
from orchestrator.engine.job import Done, Job, WorkerResult
from orchestrator.engine.local import LocalExecutor
from orchestrator.engine.observe import Observer
from orchestrator.engine.run import run
from orchestrator.engine.scheduler import Policy
from orchestrator.engine.view import PlainView
from orchestrator.errors import WorkerLost
from orchestrator.stages.base import Outcome
from orchestrator.store.artifacts import Store

pytestmark = pytest.mark.timeout(60)

OBEYED = WorkerResult(Outcome(summary={"samples": 1280}, stopped="preempted"))
ENDS = {
    "obeyed": lambda stage: Done(stage, OBEYED),
    "node taken": lambda stage: Done(stage, died="its node is gone", preempted=True),
    "rank's node taken": lambda stage: Done(stage, WorkerResult(None, error=WorkerLost("gone", preempted=True))),
    "killed": lambda stage: Done(stage, died="killed"),
    "rank killed": lambda stage: Done(stage, WorkerResult(None, error=WorkerLost("killed"))),
}


class Scripted(LocalExecutor):
    """Ends a stage's first attempts as told, and works after that. `cpus` after the first submission may differ."""

    def __init__(self, *ends: str, cpus_left: float = 2) -> None:
        super().__init__()
        self.ends = list(ends)
        self.cpus_left = cpus_left
        self.jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)
        self._capacity = Capacity(self.cpus_left)
        if self.ends:
            self._ended.put(ENDS[self.ends.pop(0)](job.stage))
        else:
            super().submit(job)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.open(str(tmp_path / "store"))


@pytest.fixture
def trace(tmp_path) -> Path:
    (tmp_path / "trace").mkdir()
    return tmp_path / "trace"


@pytest.mark.parametrize("how", ["obeyed", "node taken", "rank's node taken"])
def test_a_preempted_stage_goes_on_more_often_than_a_crashed_one(how, store, trace):
    executor, seen = Scripted(*[how] * 10), Recorder()
    result = scheduler(toy_kinds.plan({"a": (), "b": ("a",)}, trace), store, executor, observer=seen).run()
    assert states(result) == {"a": "done", "b": "done"}
    a = result.stages["a"]
    assert (a.attempts, a.preemptions, a.crashes) == (11, 10, 0)
    assert [job.generation for job in executor.jobs if job.stage == "a"] == list(range(1, 12))
    assert not [call for call in seen.calls if call[0] == "failed"]
    assert not result.cancelled


@pytest.mark.parametrize("how", ["killed", "rank killed"])
def test_a_crashed_stage_goes_on_as_often_as_its_retries_say(how, store, trace):
    result = scheduler(toy_kinds.plan({"a": ()}, trace, a={"retries": 1}), store, Scripted(how, how)).run()
    a = result.stages["a"]
    assert (a.state, a.attempts, a.crashes, a.preemptions) == ("failed", 2, 1, 0)
    assert "died 2 times: killed" in a.reason


def test_preemptions_and_crashes_have_budgets_of_their_own(store, trace):
    ends = ["obeyed", "killed", "node taken", "rank killed", "obeyed"]
    result = scheduler(toy_kinds.plan({"a": ()}, trace, a={"retries": 2}), store, Scripted(*ends)).run()
    a = result.stages["a"]
    assert (a.state, a.attempts, a.crashes, a.preemptions) == ("done", 6, 2, 3)


def test_preemptions_without_end_fail_the_stage_and_say_how_to_go_on(store, trace):
    policy = Policy(poll_s=0.02, max_preemptions=3)
    result = scheduler(toy_kinds.plan({"a": ()}, trace), store, Scripted(*["obeyed"] * 9), policy).run()
    a = result.stages["a"]
    assert (a.state, a.attempts, a.reason) == ("failed", 4, "it was preempted 4 times")
    assert a.remedy == "submitting again goes on"


@pytest.mark.parametrize("cpus_left", [0, 1])
def test_a_preempted_stage_asks_for_what_it_had_though_its_node_is_gone(cpus_left, store, trace):
    """An autoscaler brings a node for what is asked; a stage cut down to what is left would be slow for good."""
    executor = Scripted("obeyed", cpus_left=cpus_left)
    plan = toy_kinds.plan({"a": ()}, trace, a={"resources": {"cpus": 2}})
    assert states(scheduler(plan, store, executor).run()) == {"a": "done"}
    assert [job.resources.cpus for job in executor.jobs] == [2, 2]


def test_a_stage_that_obeys_its_machine_after_the_run_was_cancelled_is_stopped(store, trace):
    running = scheduler(toy_kinds.plan({"a": ()}, trace, {"a": "waits_for_stop"}), store)
    stop = running.executor.stop
    running.executor.stop = lambda stage, reason: stop(stage, "preempted")  # SIGTERM came first
    thread = threading.Thread(target=running.run)
    thread.start()
    wait(lambda: count(trace, "a") == 1)
    running.cancel()
    thread.join(30)
    assert running.status["a"].state == "stopped"
    assert running.status["a"].reason == "cancelled"


def test_a_stage_at_work_that_is_told_to_end_is_begun_again_in_the_same_run(store, trace):
    executor, seen = LocalExecutor(), Recorder()
    running = scheduler(toy_kinds.plan({"a": ()}, trace, {"a": "waits_for_file"}), store, executor, QUICK, seen)
    thread = threading.Thread(target=running.run)
    thread.start()
    wait(lambda: count(trace, "a") == 1)
    executor.stop("a", "preempted")
    wait(lambda: count(trace, "a") == 2)
    (trace / "go").touch()
    thread.join(30)
    assert running.status["a"].state == "done"
    assert ("event", "a", "message") in seen.calls


def test_a_person_is_told_where_it_was_preempted_and_that_it_goes_on(store, trace):
    output = io.StringIO()
    view = PlainView(Console(file=output, width=200))
    plan = toy_kinds.plan({"a": ()}, trace)
    scheduler(plan, store, Scripted("obeyed", "node taken"), observer=view).run()
    said = output.getvalue()
    assert "a: waiting  preempted at 1,280 samples, goes on from there" in said
    assert "a: waiting  preempted (its node is gone), goes on from its last checkpoint" in said
    assert "a: done" in said


def test_a_run_in_somebody_elses_process_leaves_its_sigterm_alone(store, trace):
    plan = toy_kinds.plan({"a": ()}, trace)
    request = SimpleNamespace(said=(), compile=lambda store: plan, again=("toys.yaml",))
    during: list[object] = []

    class Looks(Observer):
        def tick(self) -> None:
            during.append(signal.getsignal(signal.SIGTERM))

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        shown = PlainView(Console(file=io.StringIO()))
        assert run(request, store, shown, [Looks()], LocalExecutor()).ok
        assert set(during) == {signal.SIG_IGN}
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is interrupt
    finally:
        signal.signal(signal.SIGTERM, before)
