"""Kept names: given once, found wherever a run or an artifact may be named, taken back without deleting anything."""

from __future__ import annotations

import pytest
from store_made import demo, submitted

from orchestrator.errors import UserError
from orchestrator.store.artifacts import Store
from orchestrator.store.keep import drop, find_kept, keep_artifact, keep_run, list_kept
from orchestrator.store.lookup import find, find_artifact
from orchestrator.store.runs import find_run


@pytest.fixture
def store(any_root) -> Store:
    return Store.open(any_root)


def test_a_kept_artifact_is_found_by_its_name(store):
    small = demo(store)["small"]
    keep_artifact(store.storage, small.kind, small.fingerprint, small.stage, "best")
    assert find_artifact(store, "best") == small
    assert [kept.name for kept in list_kept(store.storage)] == ["best"]


def test_a_kept_run_is_found_by_its_name_and_so_are_its_stages(store):
    made = demo(store)
    run = submitted(store, made)
    keep_run(store.storage, run.id, "paper")
    assert find_run(store, "paper") == run
    assert find(store, "paper") == run
    assert find_artifact(store, "paper/small") == made["small"]


def test_keeping_twice_is_one_name_but_not_for_something_else(store):
    made = demo(store)
    small, teacher = made["small"], made["teacher"]
    first = keep_artifact(store.storage, small.kind, small.fingerprint, small.stage, "best")
    assert keep_artifact(store.storage, small.kind, small.fingerprint, small.stage, "best") == first
    with pytest.raises(UserError, match="something else") as caught:
        keep_artifact(store.storage, teacher.kind, teacher.fingerprint, teacher.stage, "best")
    assert "--drop best" in caught.value.remedy


def test_without_a_name_the_stage_and_the_fingerprint_make_one(store):
    kept = keep_artifact(store.storage, "pretrain", "ab" * 32, "arms[seed=1]")
    assert kept.name == "arms-seed-1-abababab"
    assert keep_run(store.storage, "20260101-000000-demo-0001").name == "20260101-000000-demo-0001"


@pytest.mark.parametrize("name", ["", "a/b", "last", "../x", "-x", "a b", "x" * 101])
def test_names_that_could_mean_something_else_are_refused(store, name):
    with pytest.raises(UserError, match="cannot be a name"):
        keep_run(store.storage, "20260101-000000-demo-0001", name or " ")
    assert find_kept(store.storage, name) is None


def test_a_dropped_name_is_free_and_what_it_meant_is_still_there(store):
    small = demo(store)["small"]
    keep_artifact(store.storage, small.kind, small.fingerprint, small.stage, "best")
    assert drop(store.storage, "best").fingerprint == small.fingerprint
    assert list_kept(store.storage) == []
    assert store.afresh().find(small.kind, small.fingerprint) == small
    with pytest.raises(UserError, match="nothing is kept as 'best'"):
        drop(store.storage, "best")


def test_a_kept_artifact_that_is_gone_is_named_with_the_way_out(store):
    keep_artifact(store.storage, "pretrain", "ab" * 32, "teacher", "best")
    with pytest.raises(UserError, match=r"not in .* any more") as caught:
        find_artifact(store, "best")
    assert "--drop best" in caught.value.remedy
