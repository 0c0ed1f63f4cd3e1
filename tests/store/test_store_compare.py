"""Comparisons name the first cause: not "upstream teacher", but what is different about the teacher."""

from __future__ import annotations

import pytest
from store_made import demo, make, submitted

from orchestrator.stages import KINDS
from orchestrator.store.artifacts import Store
from orchestrator.store.compare import compare_artifacts, compare_runs


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.open(str(tmp_path / "store"))


def compared(store, a, b):
    return compare_artifacts(a, b, store.find, KINDS)


def test_an_upstream_setting_is_the_first_cause(store):
    old, new = demo(store), demo(store, learning_rate=0.0005)
    found = compared(store, old["small"], new["small"])
    assert found.settings == ()
    (cause,) = found.causes
    assert (cause.stage, cause.path) == ("teacher", ("init.from",))  # and by "teacher" too: said once
    assert cause.settings == ("learning_rate 0.001 (default) → 0.0005",)


def test_a_cause_three_steps_up_is_reached_through_stages_that_changed_nothing(store):
    def chain(keep: int):
        pairs = make(store, "pairs", "dataset")
        clean = make(store, "clean", "curate", {"data": pairs}, {"steps": [{"min_size": {"pixels": keep}}]})
        teacher = make(store, "teacher", "pretrain", {"data": clean})
        return make(store, "small", "distill", {"teacher": teacher})

    (cause,) = compared(store, chain(32), chain(64)).causes
    assert (cause.stage, cause.path) == ("clean", ("teacher", "data"))
    assert cause.settings == ("steps.0.min_size.pixels 32 → 64",)


def test_other_data_are_named_by_their_content(store):
    def trained(digest: str):
        return make(store, "teacher", inputs={"data": make(store, "pairs", "dataset", digest=digest)})

    (cause,) = compared(store, trained("aa" * 32), trained("bb" * 32)).causes
    assert cause.path == ("data", "source")
    assert cause.settings == (f"emoji ({'a' * 12}) → emoji ({'b' * 12})",)


def test_own_settings_and_upstream_ones_are_told_apart(store):
    def student(steps: int, rate: float):
        teacher = make(store, "teacher", config={"learning_rate": rate})
        return make(store, "small", "distill", {"teacher": teacher}, {"steps": steps})

    found = compared(store, student(100, 0.1), student(200, 0.2))
    assert found.settings == ("steps 100 → 200",)
    assert [cause.settings for cause in found.causes] == [("learning_rate 0.1 → 0.2",)]


def test_an_ancestor_that_is_gone_is_said(store):
    old, new = demo(store), demo(store, steps=9)
    store.storage.delete(f"pretrain/{old['teacher'].fingerprint}/manifest.json")
    (cause,) = compared(store.afresh(), old["small"], new["small"]).causes
    assert "not in this store any more" in cause.settings[0]


def test_metrics_code_packages_machine_cost_and_seeds(store):
    def trained(seed: int, **facts):
        provenance = {"cpus": 2.0, "gpus": 0.0, "code": {"commit": "a", "diff_sha256": facts.get("diff")}}
        provenance |= {"packages": {"torch": facts["torch"]}, "host": {"name": facts["host"]}}
        metrics = {"loss": facts["loss"]}
        return make(store, "t", config={"seed": seed}, provenance=provenance, metrics=metrics, wall_s=facts["wall_s"])

    a = trained(1, torch="2.12", host="here", loss=2.0, wall_s=3600.0)
    b = trained(2, torch="2.13", host="there", loss=1.5, wall_s=1800.0, diff="changed")
    found = compared(store, a, b)
    changes = {
        group: {d.name: (d.a, d.b) for d in getattr(found, group)}
        for group in ("metrics", "code", "packages", "host", "cost", "seeds")
    }
    assert changes["metrics"] == {"loss": (2.0, 1.5)}
    assert changes["code"] == {"uncommitted changes": (None, "changed")}
    assert changes["packages"] == {"torch": ("2.12", "2.13")}
    assert changes["host"] == {"name": ("here", "there")}
    assert changes["cost"] == {"work_s": (3600.0, 1800.0), "cpu_hours": (2.0, 1.0)}
    assert changes["seeds"] == {"seed": (1, 2)}


def test_equal_content_by_another_way_is_said(store):
    files = {"data.bin": b"the same"}
    a, b = (make(store, "t", config={"steps": n}, files=files) for n in (1, 2))
    assert compared(store, a, b).same_content
    assert compared(store, a, a).same


def test_runs_are_compared_stage_by_stage(store):
    old, new = demo(store), demo(store, steps=600)
    del new["scores"]
    runs = [submitted(store, made) for made in (old, new)]
    store.storage.delete(f"distill/{new['small'].fingerprint}/manifest.json")
    fresh = store.afresh()
    found = compare_runs(*((run.id, run.plan()["stages"]) for run in runs), fresh.find, KINDS)
    assert found.stages["pairs"].same
    assert found.stages["teacher"].settings == ("steps 500 → 600",)
    assert found.stages["small"] == f"different; not finished in {runs[1].id}"
    assert found.stages["scores"] == f"only in {runs[0].id}"
