"""What a plan says of each stage: there or not, why, for how long, and whether code changed behind a version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from toy_recipe_kinds import KINDS, Train

from orchestrator.plan.compile import External, Indexed, compile
from orchestrator.plan.explain import explain
from orchestrator.plan.source import source_digest
from orchestrator.recipe.load import load

RECIPE = """\
stages:
  pairs: {kind: data, source: emoji}
  clean: {kind: curate, data: pairs, steps: [dedup]}
  teacher: {kind: train, data: clean, steps: 100}
"""


@dataclass
class Made:
    """A finished artifact, as far as explaining reads it."""

    kind: str
    fingerprint: str
    stage: str
    payload: Mapping[str, Any]
    inputs: Mapping[str, Mapping[str, Any]]
    wall_s: float = 10.0
    summary: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


class Shelf:
    """Finished artifacts, newest last."""

    def __init__(self) -> None:
        self.made: list[Made] = []

    def find(self, kind, fingerprint):
        return next((m for m in self.made if (m.kind, m.fingerprint) == (kind, fingerprint)), None)

    def history(self, kind):
        return (m for m in self.made if m.kind == kind)

    def add(self, plan, *stages, **facts):
        for name in stages or plan.nodes:
            node = plan.nodes[name]
            inputs = {i.key: {"name": i.stage or i.external} for i in node.inputs}
            self.made.append(Made(node.kind, node.fingerprint, name, node.payload, inputs, **facts))


@pytest.fixture
def plan(tmp_path):
    def plan(*overrides, **kwargs):
        file = tmp_path / "r.yaml"
        file.write_text(RECIPE)
        identify = kwargs.pop("identify", lambda source: Indexed("d", "sources/d"))
        return compile(load(file, overrides, kinds=KINDS), identify, lambda r: External(r), **kwargs)

    return plan


def states(plan, shelf):
    return {s.stage: (s.state, list(s.reasons)) for s in explain(plan, shelf.find, shelf.history).stages}


def test_what_was_never_run_says_so(plan):
    assert states(plan(), Shelf()) == dict.fromkeys(["pairs", "clean", "teacher"], ("to run", ["never run"]))


def test_what_is_there_is_cached_at_no_cost(plan):
    shelf = Shelf()
    shelf.add(plan())
    found = explain(plan(), shelf.find, shelf.history)
    assert {s.state for s in found.stages} == {"cached"}
    assert found.estimate_s == 0


def test_a_changed_field_is_the_reason_and_what_follows_names_its_upstream(plan):
    shelf = Shelf()
    shelf.add(plan())
    assert states(plan("stages.clean.steps.0.dedup.by=image"), shelf) == {
        "pairs": ("cached", []),
        "clean": ("to run", ["steps.0.dedup.by pair (default) → image"]),
        "teacher": ("to run", ["upstream clean"]),
    }


def test_reasons_compare_with_the_nearest_artifact_and_of_equals_with_the_newest(plan):
    shelf = Shelf()
    shelf.add(plan("stages.teacher.learning_rate=0.01"))
    shelf.add(plan("stages.teacher.learning_rate=0.02"))
    shelf.add(plan("stages.teacher.learning_rate=0.03", "stages.teacher.seed=5"))
    _, reasons = states(plan("stages.teacher.learning_rate=0.04"), shelf)["teacher"]
    assert reasons == ["learning_rate 0.02 → 0.04"]


def test_an_artifact_of_another_stage_name_is_no_reason(plan):
    shelf = Shelf()
    shelf.add(plan())
    shelf.made[-1].stage = "other"
    assert states(plan("stages.teacher.seed=5"), shelf)["teacher"] == ("to run", ["never run"])


def test_what_is_pending_says_what_for(plan):
    found = states(plan(identify=lambda source: None), Shelf())
    assert found["pairs"] == ("pending", ["to index first: emoji"])
    assert found["teacher"] == ("pending", ["waits for clean"])


def test_a_rerun_says_that_it_was_asked_for(plan):
    shelf = Shelf()
    shelf.add(plan())
    assert states(plan(rerun={"clean": "n"}), shelf)["clean"] == ("to run", ["a re-run was asked for"])


@pytest.mark.parametrize(
    ("summary", "stage", "estimate"),
    [
        ({"work": 100.0}, "teacher", 30.0),
        ({}, "teacher", 10.0),
        ({"work": 50.0}, "other", 60.0),
        ({}, "other", None),
    ],
)
def test_time_is_estimated_from_past_runs_by_their_work(plan, summary, stage, estimate):
    shelf = Shelf()
    shelf.add(plan(), summary=summary)
    shelf.made[-1].stage = stage
    found = explain(plan("stages.teacher.steps=300"), shelf.find, shelf.history).stages[-1]
    assert found.estimate_s == estimate


def test_code_that_changed_behind_an_unchanged_version_is_said(plan, monkeypatch):
    monkeypatch.setattr(Train, "sources", ("orchestrator.plan",))
    shelf = Shelf()
    shelf.add(plan(), provenance={"sources": {"orchestrator.plan": source_digest("orchestrator.plan")}})
    assert not explain(plan(), shelf.find, shelf.history).stages[-1].code_changed
    shelf.made[-1].provenance = {"sources": {"orchestrator.plan": "0" * 64}}
    assert explain(plan(), shelf.find, shelf.history).stages[-1].code_changed


def test_history_is_not_read_when_all_is_cached(plan):
    shelf = Shelf()
    shelf.add(plan())

    def history(kind):
        raise AssertionError(kind)

    explain(plan(), shelf.find, history)


def test_the_explanation_is_json(plan):
    found = explain(plan(), Shelf().find, Shelf().history).to_json()
    assert json.loads(json.dumps(found)) == found
    assert found["stages"][0]["resources"] == {"cpus": 1.0, "gpus": 0.0, "memory_bytes": None, "workers": 1}


def test_a_source_digest_follows_the_code_and_imports_nothing(tmp_path, monkeypatch):
    package = tmp_path / "somecode"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "inner" / "a.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = source_digest("somecode.inner")
    assert before == source_digest.__wrapped__("somecode.inner")
    (package / "inner" / "a.py").write_text("x = 2")
    assert source_digest.__wrapped__("somecode.inner") != before
    assert source_digest.__wrapped__("somecode.inner.a") != before
    with pytest.raises(ModuleNotFoundError):
        source_digest("somecode.nowhere")
