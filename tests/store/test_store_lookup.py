"""What a person types names one run or one artifact, or is refused with what there is."""

from __future__ import annotations

import pytest
from store_made import demo, make, submitted

from orchestrator.errors import UserError
from orchestrator.store.artifacts import DamagedError, Store
from orchestrator.store.lookup import find, find_artifact, run_artifacts, runs_with


@pytest.fixture
def store(any_root) -> Store:
    return Store.open(any_root)


def test_every_way_to_name_an_artifact_or_a_run(store):
    made = demo(store)
    run = submitted(store, made)
    small = made["small"]
    for text in ("small", f"{run.id}/small", "last/small", small.fingerprint[:8], small.fingerprint):
        assert find(store, text) == small, text
    for text in ("last", run.id, run.id[-4:] if not set(run.id[-4:]) <= set("0123456789abcdef") else "demo"):
        assert find(store, text) == run, text


def test_a_stage_is_that_of_the_newest_run_that_has_it(store):
    old, new = demo(store), demo(store, steps=600)
    submitted(store, old)
    submitted(store, {"teacher": new["teacher"]})
    newest = max(run.id for run in runs_with(store, new["teacher"].fingerprint))
    assert find(store, f"{newest}/teacher") == new["teacher"]
    assert find(store, "small") == old["small"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nothing", "nothing in .* is called 'nothing'"),
        ("last/nothing", "has no stage 'nothing'"),
        ("0" * 8, "nothing in"),
    ],
)
def test_what_there_is_not_is_refused(store, text, says):
    submitted(store, demo(store))
    with pytest.raises(UserError, match=says):
        find(store, text)


def test_a_run_where_an_artifact_is_wanted_is_refused_with_how_to_name_one(store):
    run = submitted(store, demo(store))
    with pytest.raises(UserError, match="is a run") as caught:
        find_artifact(store, "last")
    assert f"{run.id}/STAGE" in caught.value.remedy


def test_a_stage_without_a_result_says_what_happened(store):
    made = demo(store)
    store.storage.delete(f"distill/{made['small'].fingerprint}/manifest.json")
    submitted(store, made, small="failed")
    with pytest.raises(UserError, match=r"has no result \(failed"):
        find(store.afresh(), "small")


def test_a_damaged_manifest_hides_only_itself(store):
    made = demo(store)
    store.storage.put(f"distill/{made['small'].fingerprint}/manifest.json", b'{"cut off')
    fresh = store.afresh()
    found, damaged = fresh.survey()
    assert {m.stage for m in found} == {"pairs", "clean", "teacher", "scores"}
    assert list(damaged) == [made["small"].fingerprint]
    assert find(fresh, made["teacher"].fingerprint[:8]) == made["teacher"]
    with pytest.raises(DamagedError, match="not a readable manifest"):
        find(fresh, made["small"].fingerprint[:8])


def test_runs_are_found_by_what_they_asked_for(store):
    made = demo(store)
    run = submitted(store, made)
    submitted(store, {"other": make(store, "other")})
    assert runs_with(store, made["small"].fingerprint) == [run]
    assert run_artifacts(store, run) == made
