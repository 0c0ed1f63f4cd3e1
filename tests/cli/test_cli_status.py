"""`orch status` and `orch logs`: what a person is told of runs, from their records alone, on any machine."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from click.testing import CliRunner

from orchestrator.cli import status as command
from orchestrator.cli.main import orch as program
from orchestrator.engine.verdict import examine, overview
from orchestrator.errors import UserError
from orchestrator.io.storage import Storage
from orchestrator.store.artifacts import Store
from orchestrator.store.events import EventWriter, compact_events
from orchestrator.store.logs import LogWriter, compact_logs
from orchestrator.store.process import this_process
from orchestrator.store.runs import Run, create_run, engine_is_gone

NOW = 1_900_000_000.0
DEAD = {"pid": 2**22 - 1, "pid_started": "1"}


@pytest.fixture
def store(any_root, monkeypatch, tmp_path) -> Store:
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    return Store.open(any_root)


@pytest.fixture
def local(tmp_path, monkeypatch) -> Store:
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    return Store.open(str(tmp_path / "store"))


def orch(function, *arguments: str, store: Store):
    done = CliRunner().invoke(function, [*arguments, "--store", store.url])
    assert done.exception is None, done.output
    return done


def stage(state: str = "waiting", **facts) -> dict:
    return {
        "name": "",
        "kind": "pretrain",
        "fingerprint": "f",
        "state": state,
        "reason": "",
        "remedy": "",
        "generation": 1 if state != "waiting" else None,
        "attempts": 0 if state in ("waiting", "cached") else 1,
        "preemptions": 0,
        "crashes": 0,
        "started": None if state in ("waiting", "cached") else NOW - 100,
        "finished": NOW - 40 if state in ("done", "failed", "stopped") else None,
        "position": (1, 3) if state != "waiting" else (0, 0),
        **facts,
    }


def planned(**needs) -> dict:
    return {
        name: {"kind": "pretrain", "fingerprint": "f", "needs": list(of), "cpus": 2, "gpus": 0, "workers": 1}
        for name, of in needs.items()
    }


def run(store: Store, stages: dict, plan: dict | None = None, **state) -> Run:
    made = create_run(
        store,
        "demo",
        "name: demo\n",
        {
            "name": "demo",
            "again": ["recipe.yaml", "-s", "stages.a.steps=5"],
            "directory": "/work/of/somebody",
            "stages": plan or planned(**dict.fromkeys(stages, ())),
        },
    )
    made.write_state({**this_process().record(), "t": NOW, "beat_s": 10.0, "stages": stages, **state})
    return made


def progress(**values) -> dict:
    return {"progress": {"t": NOW, "done": 250.0, "total": 1000, "unit": "samples", "rate": 10.0, **values}}


VERDICTS = {
    "waits for an upstream stage": (
        {"a": stage("running", **progress()), "b": stage()},
        planned(a=(), b=("a",)),
        "b",
        "waits for a (1:15 left)",
    ),
    "waits for room": (
        {"a": stage("running", **progress()), "b": stage()},
        planned(a=(), b=()),
        "b",
        "waits for 2 CPUs, taken by a (2 CPUs)",
    ),
    "another makes it": (
        {"a": stage("elsewhere", reason="process 7 on n1 is making it; its result will be used")},
        None,
        "a",
        "process 7 on n1 is making it",
    ),
    "no node yet": ({"a": stage("running", position=(0, 0))}, None, "a", "no node has room for 2 CPUs yet"),
    "no node for a later attempt": (
        {"a": stage("running", generation=3, attempts=2, position=(1, 9), preemptions=1, **progress())},
        None,
        "a",
        "its worker has not begun",
    ),
    "silent": ({"a": stage("running", **progress(t=NOW - 200))}, None, "a", "no event from its worker for 3:20"),
    "waits for data": (
        {"a": stage("running", **progress(data_wait_share=0.62))},
        None,
        "a",
        "62% of the time waits for data: raise resources.cpus (now 2)",
    ),
    "memory": (
        {"a": stage("running", **progress(memory_percent=96.0))},
        None,
        "a",
        "96% of the machine's memory is in use: lower micro_batch",
    ),
    "micro-batches": (
        {"a": stage("running", **progress(memory_percent=30.0))},
        {"a": planned(a=())["a"] | {"batch": 1024, "micro_batch": 64}},
        "a",
        "raise micro_batch",
    ),
    "what the worker said": (
        {"a": stage("running", **progress(warning="out of memory: going on with micro-batches of 8"))},
        None,
        "a",
        "it said: out of memory: going on with micro-batches of 8",
    ),
    "preempted and crashed": (
        {"a": stage("running", attempts=4, preemptions=2, crashes=1, reason="preempted at 5 samples", **progress())},
        None,
        "a",
        "attempt 4: preempted 2 times, lost its worker once",
    ),
    "failed": (
        {"a": stage("failed", reason="the loss is not finite", remedy="lower the learning rate")},
        None,
        "a",
        "the loss is not finite; lower the learning rate",
    ),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_a_stages_verdict_says_what_and_what_to_do(case, local):
    stages, plan, name, expected = VERDICTS[case]
    seen = examine(run(local, stages, plan), now=NOW + 5)
    (found,) = [one for one in seen.stages if one.name == name]
    assert any(expected in verdict for verdict in found.verdicts), found.verdicts


def test_a_healthy_stage_has_no_verdict_and_its_progress(local):
    healthy = progress(samples_per_s=12.0, memory_percent=50.0, data_wait_share=0.05)
    (found,) = examine(run(local, {"a": stage("running", **healthy)}), now=NOW).stages
    assert found.verdicts == ()
    assert (found.share, found.left_s, found.samples_per_s, found.took_s) == (0.25, 75.0, 12.0, 100.0)


def test_every_run_is_a_line_with_the_reason(store):
    run(store, {"a": stage("cached"), "b": stage("done")})
    run(store, {"a": stage("failed", reason="no such toy")})
    run(store, {"a": stage("running", **progress(samples_per_s=12.0))}, t=time.time())
    run(store, {"a": stage("running", **progress())}, **DEAD)
    create_run(store, "young", "", {"stages": {}})
    shown = orch(command.status, store=store).output
    lines = {line.split()[1]: line for line in shown.splitlines()[1:]}
    assert set(lines) == {"done", "failed", "running", "interrupted", "starting"}
    assert "2/2" in lines["done"]
    assert "a: no such toy" in lines["failed"]
    assert "a 25% 1:15 left" in lines["running"]
    assert "12/s" in lines["running"]
    assert "has ended" in lines["interrupted"]
    found = json.loads(orch(command.status, "--json", store=store).output)
    assert {one["state"] for one in found} == set(lines)


def test_a_run_shows_its_stages_verdicts_and_the_end_of_a_failed_ones_log(store):
    with LogWriter(store.storage, "f", 1, 3600) as log:
        for number in range(40):
            log.write(f"line {number}\n")
    made = run(store, {"a": stage("failed", reason="it broke", remedy="mend it")})
    shown = orch(command.status, made.id, store=store).output
    assert "a: it broke; mend it" in shown
    assert "line 39" in shown
    assert "line 30" in shown
    assert "line 29" not in shown
    assert "go on with: orch submit /work/of/somebody/recipe.yaml -s stages.a.steps=5 --store" in shown.replace(
        "\n", ""
    )
    one = json.loads(orch(command.status, made.id, "--json", store=store).output)
    assert one["stages"][0]["log"][-1] == "line 39"


TOUCHING_A_RUN = ("status", "status last", "logs last -f", "show last", "show last --lineage", "show last --json")
TOUCHING_A_RUN += ("compare last last", "gc --no-mlflow", "report last")


@pytest.mark.parametrize("words", TOUCHING_A_RUN)
def test_a_submission_that_was_killed_before_it_wrote_its_plan_ends_no_command(words, store):
    """A process may die between any two writes; what it left must not hide the other runs."""
    store.storage.put(f"runs/{identity(0)}/recipe.yaml", b"name: demo\n")
    done = CliRunner().invoke(program, [*words.split(), "--store", store.url])
    if words == "report last":
        assert isinstance(done.exception, UserError)
        assert "ended before it had begun" in str(done.exception)
    else:
        assert done.exception is None, done.output
    if words == "status":
        assert "interrupted" in done.output


ENGINES = {
    "alive here": ({}, 1e9, False),
    "dead here": (DEAD, 0.0, True),
    "its pid was given to another": ({"pid_started": "1"}, 0.0, True),
    "elsewhere, writing": ({"host": "n7"}, 20.0, False),
    "elsewhere, silent": ({"host": "n7"}, 600.0, True),
    "in another container, writing": ({"boot": "other"}, 20.0, False),
    "elsewhere, beats seldom": ({"host": "n7", "beat_s": 100.0}, 600.0, False),
}


@pytest.mark.parametrize("case", ENGINES)
def test_an_engine_is_known_to_be_gone_on_its_machine_and_judged_by_its_silence_elsewhere(case):
    facts, silence, gone = ENGINES[case]
    state = {**this_process().record(), "t": NOW, "beat_s": 10.0, **facts}
    assert engine_is_gone(state, NOW + silence) is gone


def identity(number: int) -> str:
    return f"20260101-{number // 60:04d}{number % 60:02d}-demo-abcd"


def test_two_hundred_runs_take_a_request_each_side_by_side_and_no_events(s3_root, monkeypatch):
    store = Store.open(s3_root)
    one = run(store, {"a": stage("running", **progress())}, t=time.time())
    state = one.state()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: Run(store, identity(number)).write_state(state), range(200)))
    asked: list[str] = []
    at_work, most = [0], [0]
    get, lock = Storage.get, threading.Lock()

    def counted(self, key):
        with lock:
            asked.append(key)
            at_work[0] += 1
            most[0] = max(most[0], at_work[0])
        try:
            return get(self, key)
        finally:
            with lock:
                at_work[0] -= 1

    monkeypatch.setattr(Storage, "get", counted)
    found = overview([Run(store, identity(number)) for number in range(200)])
    assert {view.state for view in found} == {"running"}
    assert len(asked) == 200
    assert most[0] > 4


# Logs.


def logged(store: Store, fingerprint: str, generation: int, *lines: str) -> None:
    with LogWriter(store.storage, fingerprint, generation, 3600) as log:
        for line in lines:
            log.write(f"{line}\n")


def test_a_log_shows_where_an_attempt_ends(store):
    made = run(store, {"a": stage("done")})
    logged(store, "f", 1, "first", "killed")
    logged(store, "f", 2, "again")
    lines = orch(command.logs, made.id, "a", store=store).output.splitlines()
    assert lines == ["first", "killed", "--- begun again (generation 2) ---", "again"]


def test_without_a_stage_every_stages_log_is_shown_with_its_name(store):
    made = run(store, {"a": stage("done", fingerprint="fa"), "b": stage("done", fingerprint="fb"), "c": stage()})
    logged(store, "fa", 1, "one", "two")
    logged(store, "fb", 1, "three")
    lines = orch(command.logs, made.id, store=store).output.splitlines()
    assert lines == ["a | one", "a | two", "b | three"]


def test_events_are_lines_of_json_with_run_stage_and_generation(store):
    made = run(store, {"a": stage("done")})
    with EventWriter(store.storage, "f", 2, 3600) as events:
        events.emit("report", samples=5, metrics={"loss": 0.5})
    (line,) = orch(command.logs, made.id, "a", "--events", store=store).output.splitlines()
    event = json.loads(line)
    assert (event["run"], event["stage"], event["generation"], event["type"]) == (made.id, "a", 2, "report")
    assert (event["samples"], event["metrics"]) == (5, {"loss": 0.5})


def test_following_ends_when_the_stage_is_final_with_its_last_line(store, monkeypatch):
    """The stage ends, and its log is packed, between two looks."""
    made = run(store, {"a": stage("running")}, t=time.time())
    logged(store, "f", 1, "first")

    def meanwhile(seconds: float) -> None:
        for number in range(5):
            logged(store, "f", 1, f"more {number}")
        made.write_state(made.state() | {"stages": {"a": stage("done")}})
        compact_logs(store.storage, "f")
        compact_events(store.storage, "f")

    monkeypatch.setattr("orchestrator.cli.status.time.sleep", meanwhile)
    lines = orch(command.logs, made.id, "a", "-f", store=store).output.splitlines()
    assert lines == ["first", *(f"more {number}" for number in range(5))]


def test_following_ends_when_the_engine_is_gone(store):
    made = run(store, {"a": stage("running")}, **DEAD)
    logged(store, "f", 1, "first")
    shown = orch(command.logs, made.id, "a", "-f", store=store).output
    assert shown.startswith("first\n")
    assert "`orch status` says how to go on" in shown


def test_a_follower_asks_little_while_nothing_comes(store, monkeypatch):
    made = run(store, {"a": stage("running")}, t=time.time())
    logged(store, "f", 1, "first")
    asked: list[tuple[str, str]] = []
    looks: list[list] = []

    def meanwhile(seconds: float) -> None:
        looks.append(list(asked))
        asked.clear()
        if len(looks) == 4:
            made.write_state(made.state() | {"stages": {"a": stage("done")}})

    for name in ("get", "list", "children", "head"):
        method = getattr(Storage, name)
        monkeypatch.setattr(
            Storage,
            name,
            lambda self, key, name=name, method=method: (asked.append((name, key)), method(self, key))[1],
        )
    monkeypatch.setattr("orchestrator.cli.status.time.sleep", meanwhile)
    orch(command.logs, made.id, "a", "-f", store=store)
    assert [name for name, _ in looks[2]] == ["get", "children", "get"]


def test_status_says_what_mlflow_has_not_been_told(local, monkeypatch):
    from orchestrator.tracking.spool import Header, Spool

    monkeypatch.setattr("orchestrator.tracking.spool.is_delivering", lambda: False)
    spool = Spool(Header("run-1", "http://nowhere:5000", "e", None, this_process().record()))
    for samples in range(7):
        spool.append("points", fingerprint="f", points=[["loss", 1.0, samples, 0]], timed=False)
    shown = orch(command.status, store=local).output
    assert "MLflow: 7 operations of run run-1 wait since" in shown
    assert "`orch ui` or the next `orch submit` delivers them" in shown


def test_arms_of_a_matrix_are_shown_by_their_whole_names(local):
    made = run(local, {"arms[seed=0]": stage("done")})
    assert "arms[seed=0]" in orch(command.status, made.id, store=local).output
