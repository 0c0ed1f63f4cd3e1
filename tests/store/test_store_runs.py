"""Runs: recorded, listed newest first, found by a part of their id, cancelled by a marker."""

from __future__ import annotations

import re
import time

import pytest

from orchestrator.errors import UserError
from orchestrator.store import runs
from orchestrator.store.artifacts import Store
from orchestrator.store.runs import Run, create_run, find_run, list_runs


@pytest.fixture
def store(any_root) -> Store:
    return Store.open(any_root)


@pytest.fixture
def clock(monkeypatch):
    """Each run a minute after the one before."""
    gmtime, seconds = time.gmtime, iter(range(1_700_000_000, 1_800_000_000, 60))
    monkeypatch.setattr(runs.time, "gmtime", lambda: gmtime(next(seconds)))


def test_a_run_keeps_what_was_asked_for_and_how_far_it_is(store):
    run = create_run(store, "TinyCLIP, progressive!", "name: x\n", {"nodes": ["a"]})
    assert re.fullmatch(r"\d{8}-\d{6}-tinyclip-progressive-[0-9a-f]{4}", run.id)
    assert run.name == "tinyclip-progressive"
    again = Run(Store.open(store.url), run.id)
    assert (again.recipe(), again.plan(), again.state()) == ("name: x\n", {"nodes": ["a"]}, {})
    run.write_state({"stages": {"a": "running"}})
    run.write_state({"stages": {"a": "done"}})
    assert again.state() == {"stages": {"a": "done"}}


def test_the_start_is_in_the_id(store):
    before = int(time.time())
    assert before <= create_run(store, "x", "", {}).started <= time.time()


def test_a_run_is_cancelled_once(store):
    run, other = (create_run(store, "x", "", {}) for _ in range(2))
    assert not run.cancelled()
    assert run.cancel("by hand") is True
    assert run.cancel() is False
    assert run.cancelled()
    assert not other.cancelled()


def test_runs_are_listed_newest_first(store, clock):
    made = [create_run(store, name, "", {}).id for name in ("z", "a", "m")]
    assert [run.id for run in list_runs(store)] == made[::-1]
    assert find_run(store).id == made[-1]


def test_runs_are_found_by_a_part_of_their_id(store, clock):
    first, second = (create_run(store, name, "", {}) for name in ("alpha", "beta"))
    assert find_run(store, first.id) == first
    assert find_run(store, "beta") == second
    with pytest.raises(UserError, match="no run 'gamma'") as caught:
        find_run(store, "gamma")
    assert second.id in caught.value.remedy
    create_run(store, "beta", "", {})
    with pytest.raises(UserError, match="2 runs") as caught:
        find_run(store, "beta")
    assert second.id in caught.value.remedy


def test_a_store_without_runs_says_how_to_begin(store):
    assert list_runs(store) == []
    with pytest.raises(UserError, match="no runs") as caught:
        find_run(store)
    assert "orch submit" in caught.value.remedy
