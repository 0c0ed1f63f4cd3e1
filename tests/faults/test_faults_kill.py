"""Kill anywhere: every point of a run x graph shapes x stores; submitting again gives what an undisturbed run gives.

A case is one point (a call of the storage, a state change, a look at the request to stop) and how the process dies
there: before it, after it, or the worker alone. What must hold is in tables.py: equal content digests, every file as
its manifest says, no body and no step between checkpoints done more often than 1 + its interruptions, and nothing
that was finished done again. By default a sample of each row; `-m slow` runs them all.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import READS, Point, World, at
from tables import SHAPES, Truth, holds, plan_of, sample, submit_again, undisturbed

pytestmark = pytest.mark.timeout(120)

PLACES = ("local", "memory", "s3")


@pytest.fixture
def new_root(request, tmp_path) -> Callable[[str], str]:
    """A new empty root in a place."""

    def root(place: str) -> str:
        name = secrets.token_hex(6)
        if place == "s3":
            return f"s3://{request.getfixturevalue('s3_env').bucket}/{name}"
        return str(tmp_path / name) if place == "local" else f"memory://{name}"

    return root


def every_death(truth: Truth) -> list[tuple[Point, str]]:
    found = []
    for point in truth.points:
        found.append((point, "kill"))
        if point.what not in READS:
            found.append((point, "kill_after"))
        if point.who == "worker":
            found.append((point, "kill_worker"))
    return found


def disturb(shape: str, root: str, trace: Path, truth: Truth, point: Point, fault: str) -> int:
    """One case; how often the fault struck (timing decides whether some polling call comes at all)."""
    with World(root) as world:
        plan = plan_of(shape, trace)
        result = world.submit(plan, at(point, fault))
        interruptions = world.faults
        if fault == "kill_worker":
            assert result is not None
            assert result.ok, [s.reason for s in result.failed]
            holds(world, plan, trace, truth, interruptions, result)
        else:
            assert (result is None) == bool(interruptions)
        submit_again(world, plan, trace, truth, interruptions)
    return interruptions


def table(shape: str, place: str, new_root, tmp_path: Path, num: int | None) -> tuple[int, int]:
    """Run `num` of the cases of a row, or all; how many there were, and how many of them the fault was reached in."""
    truth = undisturbed(shape, new_root(place), tmp_path / "truth")
    chosen, failures, reached = sample(every_death(truth), num, SHAPES.index(shape)), [], 0
    for number, (point, fault) in enumerate(chosen):
        try:
            reached += disturb(shape, new_root(place), tmp_path / f"trace{number}", truth, point, fault)
        except AssertionError as error:
            failures.append(f"{fault} at {point}: {error}")
    assert not failures, "\n".join(failures)
    return len(chosen), reached


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shape", SHAPES)
def test_after_a_kill_submitting_again_gives_what_an_undisturbed_run_gives(shape, place, new_root, tmp_path):
    if place == "s3" and shape not in ("one", "twins"):
        pytest.skip("the other shapes on S3 take minutes: -m slow")
    table(shape, place, new_root, tmp_path, num=3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shape", SHAPES)
def test_after_a_kill_at_every_point_submitting_again_gives_the_same(shape, place, new_root, tmp_path):
    cases = table(shape, place, new_root, tmp_path, num=None)
    print(f"TABLE {shape} {place} {cases}")
