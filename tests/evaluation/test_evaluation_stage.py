"""The stage, run as the engine runs it, on the toy world."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from evaluation_toy import PREPROCESS, ToyDataset, ToyModel, broken, tokenize
from PIL import Image
from pydantic import ValidationError

from orchestrator.errors import DataError
from orchestrator.plan.types import Resources
from orchestrator.recipe.schema import references
from orchestrator.stages.evaluate import run as runner
from orchestrator.stages.evaluate.config import EvaluateStage

MODELS = {"teacher": ToyModel(), "mid": ToyModel(90), "scratch": ToyModel(120)}


class Events(list):
    def emit(self, type, **fields):
        self.append((type, fields))


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Runs an evaluate stage on named toy models; returns the context's output directory, events and the Outcome."""
    monkeypatch.setattr(
        "orchestrator.stages.models.artifact.load", lambda handle, device: (MODELS[handle], PREPROCESS, tokenize)
    )

    def call(models=tuple(MODELS), names=None, should_stop=lambda: None, data=None, **settings):
        monkeypatch.setattr(runner.Dataset, "open", lambda handle: data or ToyDataset.make())
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        keys = [f"models.{place}" for place in range(len(models))]
        ctx = SimpleNamespace(
            config=EvaluateStage.model_validate(
                {"models": list(models), "data": "pairs", "tasks": ["zeroshot", "retrieval"], "bootstrap": 20}
                | settings
            ),
            inputs={"data": "pairs", **dict(zip(keys, models))},
            input_names={"data": "pairs", **dict(zip(keys, names or models))},
            out=out,
            resources=Resources(),
            events=Events(),
            should_stop=should_stop,
        )
        return out, ctx.events, runner.run(ctx)

    return call


def test_a_report_holds_figures_comparisons_ranks_and_a_picture(stage):
    out, _, outcome = stage()
    names = sorted(path.name for path in out.iterdir())
    assert names == ["metrics.json", "paired.json", "predictions.parquet", "retrieval.json", "retrieval.png"]
    assert outcome.undeclared == ("retrieval.png", "retrieval.json")
    assert outcome.metrics["teacher/zeroshot.id.top1"] == 1
    assert outcome.metrics["scratch/zeroshot.ood.top1"] < 1
    assert outcome.metrics["teacher/parameters"] == 256
    assert outcome.metrics["teacher/images_per_s"] > 0
    record = json.loads((out / "metrics.json").read_text())
    assert record["models"][0]["retrieval.ood.text_to_image.r1"] == 1
    assert len(json.loads((out / "paired.json").read_text())["pairs"]) == 6
    assert Image.open(out / "retrieval.png").width > 600
    shown = json.loads((out / "retrieval.json").read_text())
    asked = table_uids(out)
    assert {one["uid"] for one in shown["captions"]} <= asked
    assert all(one["found"][0][0] == one["uid"] for one in shown["captions"])  # the teacher is right about all
    assert shown["right_within"][0] == 1


def table_uids(out) -> set[str]:
    return set(pq.read_table(out / "predictions.parquet")["uid"].to_pylist())


def test_ranks_on_disk_give_the_figures_again(stage):
    out, _, outcome = stage()
    table = pq.read_table(out / "predictions.parquet").to_pandas()
    part = table[table["measure"] == "zeroshot.ood"]
    assert (part["rank_2"] <= 5).mean() == outcome.metrics["scratch/zeroshot.ood.top5"]
    assert part["uid"].is_monotonic_increasing
    assert set(part["candidates"]) == {20}


def test_declared_files_are_bit_equal_on_a_second_run_with_other_names_and_batches(stage):
    one, _, _ = stage()
    other, _, outcome = stage(names=("a", "b", "b"), batch=5)
    for name in ("metrics.json", "paired.json", "predictions.parquet"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert outcome.summary["models"] == ["a", "b#1", "b#2"]
    assert "b#2/zeroshot.id.top1" in outcome.metrics


def test_metrics_are_finite_numbers_with_one_name_each(stage):
    _, _, outcome = stage()
    assert np.isfinite(list(outcome.metrics.values())).all()
    assert all(isinstance(value, float) for value in outcome.metrics.values())


def test_progress_ends_at_its_total(stage):
    _, events, _ = stage()
    steps = [fields for type, fields in events if type == "progress"]
    assert steps[-1]["done"] == steps[-1]["total"]
    assert [fields["name"] for type, fields in events if type == "phase"] == list(MODELS)


def test_a_stop_request_is_obeyed_between_batches(stage):
    out, _, outcome = stage(should_stop=lambda: "cancelled")
    assert outcome.stopped == "cancelled"
    assert list(out.iterdir()) == []


def test_zero_shot_alone_draws_no_picture(stage):
    out, _, outcome = stage(tasks=["zeroshot"])
    assert not (out / "retrieval.png").exists()
    assert outcome.undeclared == ()


def test_smoke_asks_less():
    config = EvaluateStage.model_validate(
        {"models": ["m"], "data": "d", "tasks": ["zeroshot", {"retrieval": {"ks": [1]}}]}
    )
    small = config.smoke()
    assert [task.max_samples for task in small.tasks] == [32, 32]
    assert small.tasks[1].ks == [1]
    assert small.bootstrap < config.bootstrap


def test_references_to_models_and_data_are_found_with_their_needs():
    config = EvaluateStage.model_validate({"models": ["a", "b"], "data": "d", "tasks": ["zeroshot"]})
    found = dict(references(config))
    assert list(found) == [("models", 0), ("models", 1), ("data",)]
    assert found["models", 0].needs == {"encode_image", "encode_text", "score"}


@pytest.mark.parametrize("wrong", [{"models": []}, {"tasks": []}, {"tasks": ["zeroshot", "zeroshot"]}, {"batch": 0}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        EvaluateStage.model_validate({"models": ["a"], "data": "d", "tasks": ["zeroshot"]} | wrong)


def test_bad_images_are_left_out_of_every_models_questions_and_counted(stage):
    data = ToyDataset.make()
    whole = len(data.rows)
    bad = {broken(data, row) for row in (50, 70)}
    out, events, outcome = stage(data=data, max_bad=2)
    found = outcome.summary["bad_samples"]
    assert found["counts"] == {"image cannot be decoded": 2}
    assert {text.split()[1] for text in found["examples"]["image cannot be decoded"]} == bad
    assert sum(kind == "message" for kind, _ in events) == 2
    left = data.take([row for row in range(whole) if row not in (50, 70)])
    clean, _, same = stage(data=left)
    for name in ("metrics.json", "paired.json", "predictions.parquet"):
        assert (out / name).read_bytes() == (clean / name).read_bytes()
    assert same.summary["bad_samples"] == {"counts": {}, "examples": {}}


def test_more_bad_images_than_allowed_end_the_evaluation(stage):
    data = ToyDataset.make()
    bad = broken(data, 50)
    with pytest.raises(DataError, match=rf"1 of the 72 samples of 'toy' are bad, 0 allowed .*{bad}"):
        stage(data=data)
