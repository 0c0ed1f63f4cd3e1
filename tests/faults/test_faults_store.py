"""A store that fails at any call: the run finishes or fails clearly, submitting again gives what it should.

One failure here is what is left after the retries of `io`: a store that was away for a while. Whatever the submitter
asks of it is waited out; a stage's own reading and writing of checkpoints fails the stage, in words for people.
By default a sample of each row; `-m slow` runs them all.
"""

from __future__ import annotations

import secrets
from dataclasses import replace

import pytest
from faults import QUICK, STRICT, Point, World, at
from tables import SHAPES, STORAGE, bodies, digests, finished, holds, plan_of, sample, submit_again, undisturbed

from orchestrator.engine import publish
from orchestrator.engine.observe import RunResult
from orchestrator.errors import OrchError, StoreAway
from orchestrator.io.storage import Storage

pytestmark = pytest.mark.timeout(120)

DECISION = ("runs/RUN/recipe.yaml", "runs/RUN/plan.json")
"""What a submission cannot begin without: written before there is anything to wait for."""


@pytest.fixture(autouse=True)
def short_pause(monkeypatch):
    monkeypatch.setattr(publish, "PAUSE_S", 0.01)
    monkeypatch.setattr(publish, "PATIENCE_S", 0.5)


@pytest.fixture
def root() -> str:
    return f"memory://{secrets.token_hex(6)}"


def fails_clearly(result: RunResult) -> None:
    """Every stage that failed says what is wrong and that submitting again goes on, in one line."""
    for status in result.failed:
        assert "storage failed after retries" in status.reason, status.reason
        assert "submit again" in status.remedy, status.remedy
        assert "\n" not in status.reason
    assert {s.state for s in result.stages.values()} <= {"done", "cached", "failed", "skipped"}


def one_fault(shape: str, point: Point, fault: str, tmp_path, truth) -> None:
    trace = tmp_path / secrets.token_hex(4)
    with World(f"memory://{secrets.token_hex(6)}") as world:
        plan = plan_of(shape, trace)
        try:
            result = world.submit(plan, at(point, fault))
        except StoreAway:
            assert point.key in DECISION, point
            result = None
        struck = world.faults
        if result is not None:
            fails_clearly(result)
            assert not result.failed or point.who == "worker", result.failed
            if result.ok:
                holds(world, plan, trace, truth, sum(s.crashes for s in result.stages.values()), result)
        submit_again(world, plan, trace, truth, struck)


def table(shape: str, tmp_path, num: int | None) -> int:
    truth = undisturbed(shape, f"memory://{secrets.token_hex(6)}", tmp_path / "truth")
    cases = [(point, fault) for point in truth.calls for fault in ("away", "lost", "slow")]
    failures = []
    for point, fault in (chosen := sample(cases, num, SHAPES.index(shape))):
        try:
            one_fault(shape, point, fault, tmp_path, truth)
        except Exception as error:
            failures.append(f"{fault} at {point}: {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)
    return len(chosen)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_store_that_is_away_at_one_call_is_waited_for_or_fails_the_stage_clearly(shape, tmp_path):
    table(shape, tmp_path, num=6)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_store_that_is_away_at_any_one_call_is_waited_for_or_fails_the_stage_clearly(shape, tmp_path):
    print(f"TABLE {shape} {table(shape, tmp_path, num=None)}")


def test_every_call_of_a_storage_can_fail():
    plain = ("open", "local", "where")  # these touch nothing
    calls = {name for name, value in vars(Storage).items() if callable(value) and not name.startswith("_")}
    assert calls - set(plain) == set(STORAGE)


class From:
    """From the n-th call of the storage on, all fail."""

    def __init__(self, first: int) -> None:
        self.left = first

    def __call__(self, point: Point) -> str | None:
        self.left -= point.what in STORAGE
        return "away" if self.left < 0 and point.what in STORAGE else None


def goes_away_at(first: int, tmp_path, truth) -> None:
    trace = tmp_path / secrets.token_hex(4)
    with World(f"memory://{secrets.token_hex(6)}") as world:
        plan = plan_of("diamond", trace)
        try:
            result = world.submit(plan, From(first), STRICT)
        except StoreAway:
            result = None
        if result is not None:
            assert not result.ok or finished(world, plan) == set(plan.nodes)
            fails_clearly(result)
            said = [text.partition(" failed")[0] for text in world.said]
            assert len(said) == len(set(said)), said  # each thing once, not once a second
        submit_again(world, plan, trace, truth, 1)


@pytest.mark.parametrize("first", range(0, 130, 13))
def test_a_store_that_goes_away_for_good_fails_the_run_clearly(first, tmp_path):
    truth = undisturbed("diamond", f"memory://{secrets.token_hex(6)}", tmp_path / "truth")
    goes_away_at(first, tmp_path, truth)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_store_that_goes_away_for_good_at_any_call_fails_the_run_clearly(tmp_path):
    truth = undisturbed("diamond", f"memory://{secrets.token_hex(6)}", tmp_path / "truth")
    for first in range(150):
        goes_away_at(first, tmp_path, truth)


@pytest.mark.parametrize(
    ("who", "what", "key"),
    [
        ("submitter", "put", "runs/RUN/state.json"),
        ("submitter", "head", "runs/RUN/cancel"),
        ("submitter", "children", "work/"),
        ("submitter", "delete", "work/a/"),
        ("worker", "create", "work/"),
    ],
    ids=["state", "cancel file", "reading events", "clearing checkpoints", "writing events and logs"],
)
def test_bookkeeping_that_always_fails_ends_nothing_and_is_said_once(who, what, key, root, tmp_path):
    with World(root) as world:
        plan = plan_of("diamond", tmp_path / "trace")

        def choose(point: Point) -> str | None:
            mine = (point.who, point.what) == (who, what) and point.key.startswith(key)
            return "away" if mine else None

        result = world.submit(plan, choose)
        assert result is not None
        assert result.ok, [s.reason for s in result.failed]
        assert world.faults > 0
        assert set(bodies(plan, tmp_path / "trace").values()) == {1}
        said = [text.partition(" failed")[0] for text in world.said]
        assert len(said) == len(set(said)), said


def test_a_finished_stage_waits_for_the_store_and_is_then_published_without_new_work(root, tmp_path):
    """The answer of its manifest's creation is lost, and then the store is away for several looks."""
    with World(root) as world:
        plan = plan_of("one", tmp_path / "trace")
        left = ["lost", "away", "away", "away"]

        def choose(point: Point) -> str | None:
            publishing = (point.who, point.what) == ("submitter", "create") and point.key == "toy/a/manifest.json"
            away = len(left) < 4 and point.what == "list" and point.key == "leases/a"
            return left.pop(0) if left and (publishing or away) else None

        result = world.submit(plan, choose)
        assert result is not None
        assert result.ok
        assert result.stages["a"].attempts == 1
        assert not left
        assert set(bodies(plan, tmp_path / "trace").values()) == {1}


def test_an_upload_goes_on_after_the_store_was_away_and_brings_only_what_is_missing(root, tmp_path):
    with World(root) as world:
        plan = plan_of("one", tmp_path / "trace")
        left = 2

        def choose(point: Point) -> str | None:
            nonlocal left
            if point.who == "worker" and point.what == "put" and point.key.endswith("/text") and left:
                left -= 1
                return "away"
            return None

        result = world.submit(plan, choose)
        assert result is not None
        assert result.ok
        puts = [p.key.rpartition("/")[2] for p in world.seen if p.what == "put" and "/attempts/" in p.key]
        assert sorted(puts) == ["text", "text", "text", "when"]
        assert set(bodies(plan, tmp_path / "trace").values()) == {1}


def test_a_lease_whose_answer_was_lost_is_this_runs_own(root, tmp_path):
    with World(root) as world:
        plan = plan_of("one", tmp_path / "trace")
        result = world.submit(plan, lambda p: "lost" if (p.what, p.key) == ("create", "leases/a/1") else None)
        assert result is not None
        assert result.ok
        assert result.stages["a"].generation == 1


def test_patience_has_an_end_and_then_the_stage_fails_with_the_way_on(root, tmp_path):
    truth = undisturbed("one", f"memory://{secrets.token_hex(6)}", tmp_path / "truth")
    with World(root) as world:
        plan = plan_of("one", tmp_path / "trace")
        result = world.submit(
            plan,
            lambda p: "away" if p.what == "create" and p.key == "toy/a/manifest.json" else None,
            replace(QUICK, patience_s=0.1),
        )
        assert result is not None
        assert result.stages["a"].state == "failed"
        fails_clearly(result)
        again = submit_again(world, plan, tmp_path / "trace", truth, 1)
        assert digests(again) == truth.digests


def test_a_submission_that_cannot_begin_says_so(root, tmp_path):
    with World(root) as world, pytest.raises(OrchError, match="storage failed after retries"):
        world.submit(plan_of("one", tmp_path / "trace"), lambda p: "away")
