"""A training stage that validates: its curves, and which weights become its Model."""

from __future__ import annotations

from itertools import pairwise

import pytest
from safetensors.torch import load_file
from stages_train_tiny import MODEL, make_store, run_stage

from orchestrator.errors import UserError
from orchestrator.stages.train.config import Pretrain

FIELDS = {
    "data": "pairs",
    "model": MODEL,
    "batch": 8,
    "steps": 6,
    "warmup_steps": 2,
    "report_every": 4,
    "ema": {"decay": 0.5, "warmup": False},
    "validation": {"every_samples": 16, "split": "id"},
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"))


def run(stored, folder, name: str, **fields):
    config = Pretrain.model_validate(FIELDS | fields)
    return run_stage(stored[0], config, folder, "pretrain", name * 64, {"data": stored[1]})


def test_validation_is_reported_and_the_result_is_what_was_asked_for(stored, tmp_path):
    last = run(stored, tmp_path, "a")
    points = {e["samples"]: e["metrics"]["val/loss"] for e in last.events.of("report") if "val/loss" in e["metrics"]}
    assert sorted(points) == [16, 32, 48]
    assert last.outcome.metrics["val/loss"] == points[48]
    assert last.outcome.metrics["val_ema/loss"] > 0
    mode = "min" if points[48] != min(points.values()) else "max"
    best = run(stored, tmp_path, "b", result="best", select={"mode": mode})
    assert best.outcome.metrics["best/val/loss"] == (min if mode == "min" else max)(points.values())
    average = run(stored, tmp_path, "c", result="ema")
    weights = [load_file(done.out / "weights.safetensors") for done in (last, best, average)]
    name = "network.text_projection"
    assert not any((a[name] == b[name]).all() for a, b in pairwise(weights))


def test_a_split_that_the_data_lack_stops_the_stage_before_it_trains(stored, tmp_path):
    with pytest.raises(UserError, match="no sample of split 'test'"):
        run(stored, tmp_path, "d", validation={"every_samples": 8, "split": "test"})
