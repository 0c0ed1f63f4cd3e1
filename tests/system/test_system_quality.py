"""The demo in full: what its header promises of the models' quality. Minutes; run with `pytest -m slow`."""

from __future__ import annotations

import json

import pytest
from system_orch import DEMO

from orchestrator.store.artifacts import Handle, Store

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]

KEPT_OF_TEACHER = 0.85
"""`id` top-5 of `small` against the teacher's, at least."""
OOD_TIMES_CHANCE = 30
AGAINST_SCRATCH = 2.0
HELD_OUT_CELLS = 600
SIZE_OF_TEACHER = 0.5
"""Parameters without the token table, at most."""


@pytest.fixture(scope="module")
def report(orch, tmp_path_factory) -> Handle:
    """The full demo's Report."""
    store = str(tmp_path_factory.mktemp("full") / "store")
    said = orch("submit", DEMO, "--store", store, timeout_s=1200)
    print(said.out)
    opened = Store.open(store)
    (manifest,) = opened.manifests("evaluate")
    return Handle(opened, manifest)


@pytest.fixture(scope="module")
def figures(report) -> dict[str, float]:
    """`<model>/<figure>` of the Report."""
    return dict(report.manifest.metrics)


def test_there_are_enough_held_out_cells_to_judge_by(figures):
    assert figures["small/zeroshot.id.n"] >= HELD_OUT_CELLS


def test_small_has_at_most_half_the_teachers_parameters(figures):
    name = "parameters_without_token_table"
    assert figures[f"small/{name}"] <= SIZE_OF_TEACHER * figures[f"teacher/{name}"]


def test_small_keeps_most_of_the_teachers_top5_on_held_out_drawings(figures):
    assert figures["small/zeroshot.id.top5"] >= KEPT_OF_TEACHER * figures["teacher/zeroshot.id.top5"]


def test_small_recognises_a_style_it_never_saw_far_above_chance(figures):
    chance = figures["small/zeroshot.ood.chance_top5"]
    assert figures["small/zeroshot.ood.top5"] >= OOD_TIMES_CHANCE * chance


def test_inheritance_beats_training_from_scratch_at_equal_steps(report):
    names = [report.manifest.inputs[f"models.{place}"]["name"] for place in range(4)]
    pairs = json.loads(report.read("paired.json"))["pairs"]
    (compared,) = [p for p in pairs if (names[p["model"]], names[p["against"]]) == ("small", "scratch")]
    ratio = compared["figures"]["zeroshot.id.top5"]
    assert ratio["ratio"] >= AGAINST_SCRATCH
    assert ratio["ratio.low"] > 1
