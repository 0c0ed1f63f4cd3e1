"""The scheduler with an executor of threads: graph shapes x behaviours x stores, leases, stops, retries."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import toy_kinds
from toy_kinds import SHAPES, count, wait

from orchestrator.engine.job import Done, Job
from orchestrator.engine.local import LocalExecutor
from orchestrator.engine.observe import Observer, Observers, RunResult
from orchestrator.engine.scheduler import Policy, Scheduler
from orchestrator.plan.types import Plan
from orchestrator.store.artifacts import Store
from orchestrator.store.leases import Held, Lease, acquire
from orchestrator.store.runs import create_run

pytestmark = pytest.mark.timeout(60)

QUICK = Policy(poll_s=0.02, elsewhere_s=0.02, grace_s=0.2, cancel_file_s=0.02)


class Recorder(Observer):
    """Keeps every call as (hook, stage, word)."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, str]] = []

    def stage_state(self, node, status):
        self.calls.append(("state", node.name, status.state))

    def stage_started(self, node):
        self.calls.append(("started", node.name, ""))

    def stage_event(self, node, event):
        self.calls.append(("event", node.name, event["type"]))

    def stage_finished(self, node, manifest, cached, children):
        self.calls.append(("finished", node.name, "cached" if cached else "made"))

    def stage_failed(self, node, reason, stopped):
        self.calls.append(("failed", node.name, reason))


class Flaky(LocalExecutor):
    """Reports the first attempts of some stages as died: `deaths` says how many, `preempted` which by preemption."""

    def __init__(self, deaths: Mapping[str, int], preempted: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.deaths = dict(deaths)
        self.preempted = preempted
        self.jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)
        if self.deaths.get(job.stage, 0) > 0:
            self.deaths[job.stage] -= 1
            self._ended.put(Done(job.stage, died="killed by a test", preempted=job.stage in self.preempted))
        else:
            super().submit(job)


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path) -> Store:
    return Store.open(str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path.name}")


@pytest.fixture
def trace(tmp_path) -> Path:
    (tmp_path / "trace").mkdir()
    return tmp_path / "trace"


def scheduler(plan: Plan, store: Store, executor=None, policy: Policy = QUICK, observer=None) -> Scheduler:
    run = create_run(store, "toys", "name: toys\n", {})
    observers = Observers([] if observer is None else [observer], pytest.fail)
    return Scheduler(plan, store, executor or LocalExecutor(), run, observers, policy)


def states(result: RunResult) -> dict[str, str]:
    return {name: status.state for name, status in result.stages.items()}


def downstream(shape: Mapping[str, tuple[str, ...]], of: str) -> set[str]:
    found: set[str] = set()
    for name, needs in shape.items():
        if of in needs or found & set(needs):
            found.add(name)
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_made_once_and_is_cached_after(shape, store, trace):
    plan = toy_kinds.plan(SHAPES[shape], trace)
    first = scheduler(plan, store).run()
    assert set(states(first).values()) == {"done"}
    assert first.ok
    second = scheduler(plan, store, observer=(seen := Recorder())).run()
    assert set(states(second).values()) == {"cached"}
    assert [call for call in seen.calls if call[0] == "started"] == []
    assert all(count(trace, name) == 1 for name in plan.nodes)
    last = list(plan.nodes.values())[-1]
    assert store.handle("toy", last.fingerprint).read("text").startswith(last.name.encode())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("behaviour", ["fails", "user_error", "bug"])
def test_a_failed_stage_stops_only_what_needs_it_and_is_not_retried(shape, behaviour, store, trace):
    plan = toy_kinds.plan(SHAPES[shape], trace, {"a": behaviour})
    result = scheduler(plan, store).run()
    lost = downstream(SHAPES[shape], "a")
    expected = {name: "failed" if name == "a" else "skipped" if name in lost else "done" for name in plan.nodes}
    assert states(result) == expected
    assert count(trace, "a") == 1
    assert not result.ok
    assert [s.name for s in result.failed] == ["a"]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_died_worker_is_started_again_under_a_new_generation(shape, store, trace):
    plan = toy_kinds.plan(SHAPES[shape], trace)
    executor = Flaky({"a": 2})
    result = scheduler(plan, store, executor).run()
    assert result.ok
    assert [job.generation for job in executor.jobs if job.stage == "a"] == [1, 2, 3]
    assert len({job.attempt for job in executor.jobs if job.stage == "a"}) == 3
    assert result.stages["a"].attempts == 3


def test_crashes_have_a_small_budget_and_preemptions_their_own(store, trace):
    plan = toy_kinds.plan({"a": (), "x": ()}, trace)
    result = scheduler(plan, store, Flaky({"a": 5, "x": 5}, preempted=("x",))).run()
    assert states(result) == {"a": "failed", "x": "done"}
    assert result.stages["a"].attempts == 3
    assert "died 3 times: killed by a test" in result.stages["a"].reason
    assert "submitting again goes on" in result.stages["a"].remedy


def test_failures_say_what_and_what_to_do(store, trace):
    behaviours = {"a": "fails", "b": "bug", "c": "full_disk", "d": "memory", "e": "store_away"}
    plan = toy_kinds.plan(dict.fromkeys(behaviours, ()), trace, behaviours)
    result = scheduler(plan, store).run()
    assert (result.stages["a"].reason, result.stages["a"].remedy) == ("the toy is broken", "buy another")
    assert result.stages["b"].reason == "ValueError: no such toy"
    assert "orch logs" in result.stages["b"].remedy
    assert "make room" in result.stages["c"].remedy
    assert "lower micro_batch" in result.stages["d"].remedy
    assert result.stages["e"].reason == "storage failed after retries: 503"


def test_independent_stages_run_side_by_side_within_the_budget(store, trace):
    plan = toy_kinds.plan({"a": (), "b": (), "c": ()}, trace, dict.fromkeys("abc", "waits_for_file"))
    running = scheduler(plan, store, LocalExecutor(cpus=2))
    thread = threading.Thread(target=running.run)
    thread.start()
    wait(lambda: count(trace, "a") == 1 and count(trace, "b") == 1)
    assert running.status["c"].state == "waiting"
    (trace / "go").touch()
    thread.join(30)
    assert {s.state for s in running.status.values()} == {"done"}


def test_a_stage_that_asks_for_more_cpus_than_there_are_gets_what_there_is_and_says_so(store, trace):
    plan = toy_kinds.plan({"a": ()}, trace, a={"resources": {"cpus": 8}})
    seen = Recorder()
    executor = Flaky({})
    running = scheduler(plan, store, executor, observer=seen)
    said = []
    running._set = (lambda keep: lambda node, **c: (said.append(c.get("reason")), keep(node, **c)))(running._set)
    assert running.run().ok
    assert executor.jobs[0].resources.cpus == 2
    assert "with 2 of the 8 CPUs it asks for" in said


def test_missing_gpus_are_an_error_with_the_remedy(store, trace):
    plan = toy_kinds.plan({"a": ()}, trace, a={"resources": {"gpus": 1}})
    result = scheduler(plan, store).run()
    assert states(result) == {"a": "failed"}
    assert "asks for 1 GPUs, the cluster has 0" in result.stages["a"].reason
    assert count(trace, "a") == 0


def test_a_lease_held_elsewhere_is_awaited_and_its_result_used(store, trace):
    plan = toy_kinds.plan({"a": (), "b": ("a",)}, trace, {"a": "waits_for_file"})
    theirs = scheduler(plan, store)
    thread = threading.Thread(target=theirs.run)
    thread.start()
    wait(lambda: count(trace, "a") == 1)
    seen = Recorder()

    class Go(Observer):
        def stage_state(self, node, status):
            if status.state == "elsewhere" and node.name == "a":
                (trace / "go").touch()

    run = create_run(store, "toys", "", {})
    ours = Scheduler(plan, store, LocalExecutor(), run, Observers([seen, Go()], pytest.fail), QUICK).run()
    thread.join(30)
    assert ours.ok
    assert ("state", "a", "elsewhere") in seen.calls
    assert states(ours)["a"] == "cached"
    assert all(count(trace, name) == 1 for name in "ab")


def test_a_lost_lease_stops_its_stage_publishes_nothing_and_uses_the_other_result(store, trace):
    plan = toy_kinds.plan({"a": ()}, trace, {"a": "waits_for_stop"})
    running = scheduler(plan, store)
    thread = threading.Thread(target=running.run)
    thread.start()
    wait(lambda: count(trace, "a") == 1)
    running._attempts["a"].lease.lost.set()
    wait(
        lambda: (
            running.status["a"].reason == "another submission has taken it over" or running.status["a"].attempts > 1
        )
    )
    assert store.find("toy", plan.nodes["a"].fingerprint) is None
    running.cancel()
    thread.join(30)
    assert running.status["a"].state == "stopped"


def test_a_result_that_comes_after_the_lease_was_taken_over_is_not_published(store, trace):
    plan = toy_kinds.plan({"a": ()}, trace, {"a": "waits_for_file"})
    running = scheduler(plan, store)
    thread = threading.Thread(target=running.run)
    thread.start()
    wait(lambda: count(trace, "a") == 1)
    fingerprint = plan.nodes["a"].fingerprint
    generation = running.status["a"].generation
    # Somebody else takes over: the next generation appears.
    theirs = store.storage.get(f"leases/{fingerprint}/{generation}")
    assert store.storage.create(f"leases/{fingerprint}/{generation + 1}", theirs)
    (trace / "go").touch()
    wait(lambda: running.status["a"].state in ("elsewhere", "failed"))
    assert running.status["a"].state == "elsewhere"
    assert store.find("toy", fingerprint) is None
    running.cancel()
    thread.join(30)


@pytest.mark.parametrize("how", ["signal", "file"])
def test_cancel_stops_running_stages_cleanly_and_submitting_again_goes_on(how, store, trace):
    plan = toy_kinds.plan({"a": (), "b": ("a",)}, trace, {"a": "waits_for_stop"})
    running = scheduler(plan, store)
    results: list[RunResult] = []
    thread = threading.Thread(target=lambda: results.append(running.run()))
    thread.start()
    wait(lambda: count(trace, "a") == 1)
    if how == "signal":
        running.cancel()
    else:
        running.run_files.cancel("enough")
    thread.join(30)
    assert states(results[0]) == {"a": "stopped", "b": "stopped"}
    assert results[0].cancelled
    assert results[0].stages["a"].remedy == "submitting again goes on"
    again = scheduler(toy_kinds.plan({"a": (), "b": ("a",)}, trace), store).run()
    assert again.ok


def test_cancelled_twice_ends_at_once_and_frees_the_leases(store, trace):
    plan = toy_kinds.plan({"a": ()}, trace, {"a": "waits_for_file"})
    running = scheduler(plan, store, policy=Policy(poll_s=0.02, grace_s=60))
    executor_stop: Callable = running.executor.stop
    running.executor.stop = lambda stage, reason: None  # the stage does not listen
    thread = threading.Thread(target=running.run)
    thread.start()
    wait(lambda: count(trace, "a") == 1)
    running.cancel()
    running.cancel()
    thread.join(5)
    assert not thread.is_alive()
    assert running.status["a"].state == "stopped"
    lease = acquire(store, plan.nodes["a"].fingerprint)
    assert isinstance(lease, Lease)
    lease.release()
    assert executor_stop is not None


def test_time_limit_stops_a_stage_and_ends_one_that_does_not_listen(store, trace):
    limit = {"time_limit_minutes": 0.001}
    plan = toy_kinds.plan({"a": (), "b": ()}, trace, {"a": "waits_for_stop", "b": "waits_for_file"}, a=limit, b=limit)
    running = scheduler(plan, store)
    stop = running.executor.stop
    running.executor.stop = lambda stage, reason: stop(stage, reason) if stage == "a" else None
    result = running.run()
    assert states(result) == {"a": "stopped", "b": "stopped"}
    assert result.stages["a"].reason == "time limit"
    assert result.stages["b"].reason == "time limit"
    assert not result.cancelled


def test_two_stages_of_equal_identity_are_computed_once(store, trace):
    plan = toy_kinds.plan({"a": ()}, trace)
    node = plan.nodes["a"]
    twins = Plan("twins", {"a": node, "twin": type(node)(**{**node.__dict__, "name": "twin"})})
    result = scheduler(twins, store).run()
    assert sorted(states(result).values()) == ["cached", "done"]
    assert count(trace, "a") + count(trace, "twin") == 1


def test_observers_hear_events_before_the_end_of_their_stage(store, trace):
    seen = Recorder()
    scheduler(toy_kinds.plan({"a": ()}, trace), store, observer=seen).run()
    mine = [call for call in seen.calls if call[0] != "state"]
    assert mine[0] == ("started", "a", "")
    assert mine[-1] == ("finished", "a", "made")
    assert mine.count(("event", "a", "progress")) == 2


def test_state_json_has_every_stage(store, trace):
    plan = toy_kinds.plan({"a": (), "b": ("a",)}, trace, {"a": "fails"})
    running = scheduler(plan, store)
    running.run()
    state = running.run_files.state()
    assert {name: s["state"] for name, s in state["stages"].items()} == {"a": "failed", "b": "skipped"}
    assert state["stages"]["a"]["reason"] == "the toy is broken"
    json.dumps(state)


def test_manifest_says_what_from_what_where_and_how_long(store, trace):
    plan = toy_kinds.plan({"a": (), "b": ("a",)}, trace)
    result = scheduler(plan, store).run()
    manifest = store.find("toy", plan.nodes["b"].fingerprint)
    assert manifest is not None
    assert manifest.inputs["needs.0"]["name"] == "a"
    assert manifest.inputs["needs.0"]["content_digest"] == result.manifests["a"].content_digest
    assert manifest.payload == plan.nodes["b"].payload
    assert manifest.metrics == {"length": 3.0}
    assert not manifest.files["when"].declared
    assert manifest.files["text"].declared
    assert manifest.provenance["threads"] == 1
    assert manifest.wall_s <= time.time() - manifest.started + 1


def test_held_elsewhere_names_the_holder(store, trace):
    plan = toy_kinds.plan({"a": ()}, trace)
    lease = acquire(store, plan.nodes["a"].fingerprint)
    assert isinstance(lease, Lease)
    assert isinstance(acquire(store, plan.nodes["a"].fingerprint), Held)
    running = scheduler(plan, store)
    thread = threading.Thread(target=running.run)
    thread.start()
    wait(lambda: running.status["a"].state == "elsewhere")
    assert f"process {lease.owner.pid} on {lease.owner.host}" in running.status["a"].reason
    lease.release()
    thread.join(30)
    assert running.status["a"].state == "done"
