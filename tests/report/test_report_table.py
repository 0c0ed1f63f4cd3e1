"""The final table, drawn from figures that the evaluation really computes on made-up ranks."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from orchestrator.evaluation.figures import describe, figures
from orchestrator.evaluation.protocol import Measure
from orchestrator.report.summary import reports
from orchestrator.report.table import Scores, load, render, table_json
from orchestrator.store.artifacts import Manifest, Store

SPLITS = {"id": (620, 1100), "ood": (1100, 1100), "unseen": (228, 76)}
NAMES = ("teacher", "mid", "small", "scratch")


def measure(name, label, ks, num, candidates, sizes):
    return Measure(
        name=name,
        split=name.split(".")[1],
        label=label,
        ks=ks,
        rows=np.arange(num),
        units=np.arange(num),
        candidates=np.full(num, candidates),
        positives=np.ones(num, dtype=np.int64),
        target=None,
        sizes=sizes,
        about={},
        image_rows=np.arange(num),
        texts=(),
        rank=lambda encoded: np.ones(num),
    )


def report(names=NAMES, splits=SPLITS, ways=("image_to_text", "text_to_image")):
    """A finished Report as the store hands it out: files, and the names of its inputs in the manifest."""
    measures = [
        measure(f"zeroshot.{split}", "top", (1, 5), num, classes, {"n": num, "classes": classes, "without_class": 0})
        for split, (num, classes) in splits.items()
    ]
    for split in ("id", "ood"):
        num = SPLITS[split][0]
        sizes = {"n": num, "images": num, "texts": num, "styles": 2 if split == "id" else 1}
        measures += [measure(f"retrieval.{split}.{way}", "r", (1, 5, 10), num, num, sizes) for way in ways]
    rng = np.random.default_rng(0)
    ranks = [{m.name: rng.geometric(0.2 / (1 + place), m.rows.size) for m in measures} for place in range(len(names))]
    flat, pairs = figures(measures, ranks, 50, 0)
    for figure in flat:
        figure |= {"parameters": 5.46e6, "parameters_without_token_table": 0.72e6}
    intervals = {"level": 0.95, "samples": 50, "seed": 0}
    files = {
        "metrics.json": {"intervals": intervals, "measures": [describe(m) for m in measures], "models": flat},
        "paired.json": {"intervals": intervals, "pairs": pairs},
    }
    inputs = {f"models.{place}": {"name": name} for place, name in enumerate(names)}
    return SimpleNamespace(
        read=lambda name: json.dumps(files[name], allow_nan=False).encode(), manifest=SimpleNamespace(inputs=inputs)
    )


def opened(names=NAMES, **options) -> Scores:
    return load(report(names, **options), {"models.0": {"samples_per_s": 641.7}})


def drawn(scores: Scores, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(render(scores))
    return console.file.getvalue()


def test_the_table_fits_100_columns_and_cuts_no_figure():
    text = drawn(opened())
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    for name in NAMES:
        assert name in text


def test_every_figure_stands_with_its_interval_and_chance():
    scores = opened()
    text = drawn(scores)
    for row in scores.rows:
        for name in ("zeroshot.id.top5", "zeroshot.ood.top1", "retrieval.ood.text_to_image.r1"):
            value, low, high = (100 * row.figures[f"{name}{end}"] for end in ("", ".low", ".high"))
            assert f"{value:.1f}" in text
            assert f"{low:.1f}-{high:.1f}" in text
    chances = next(line for line in text.splitlines() if line.split()[:1] == ["chance"])
    assert chances.split()[1:] == ["0.09", "0.45", "0.09", "0.45", "1.32", "6.58"]


def test_sizes_parameters_and_speed_are_printed():
    text = drawn(opened())
    for fact in (
        "620 images, 1,100 classes",
        "228 images, 76 classes",
        "within its style (2 of them)",
        "5.46 M",
        "0.72 M",
        "642",
    ):
        assert fact in text


def test_ratios_of_id_top_5_are_paired_between_all_models():
    scores = opened()
    figure = scores.pairs[2, 3]["zeroshot.id.top5"]
    text = drawn(scores)
    assert "id top-5: ratio" in text
    assert f"{figure['ratio.low']:.2f}-{figure['ratio.high']:.2f}" in text


def test_many_models_with_long_names_still_fit_and_are_compared_with_the_first():
    names = tuple(f"arms[method=tinyclip,seed={seed}]" for seed in range(7))
    text = drawn(opened(names))
    assert max(map(len, text.splitlines())) <= 100
    assert text.count(" / ") == 1
    assert "seed=6]" in text.replace("\n", "")


def test_names_of_the_present_recipe_replace_those_of_the_one_that_made_the_report():
    scores = load(report(), {}, {"models.2": "student"})
    assert [row.name for row in scores.rows] == ["teacher", "mid", "student", "scratch"]


def test_one_model_alone_has_no_comparison():
    assert "ratio" not in drawn(opened(("only",)))


@pytest.mark.parametrize("splits", [{}, {"train": (30, 3)}])
def test_other_tasks_and_splits_than_the_usual_ones_are_drawn(splits):
    assert "text→image R@1" in drawn(opened(splits=splits))


def test_json_has_the_same_and_is_strict():
    scores = opened()
    value = json.loads(json.dumps(table_json(scores), allow_nan=False))
    assert [model["name"] for model in value["models"]] == list(NAMES)
    assert value["models"][0]["samples_per_s"] == 641.7
    assert {(pair["model"], pair["against"]) for pair in value["pairs"]} >= {
        ("small", "teacher"),
        ("small", "scratch"),
    }


def test_a_run_shows_its_reports_under_its_own_names_with_the_speed_of_its_trainings(tmp_path):
    made = report(("old", "model from elsewhere"))
    (tmp_path / "out").mkdir()
    for name in ("metrics.json", "paired.json"):
        (tmp_path / "out" / name).write_bytes(made.read(name))
    (tmp_path / "out" / "retrieval.png").write_bytes(b"picture")
    inputs = {
        "models.0": {"name": "old", "fingerprint": "a"},
        "models.1": {"name": "model from elsewhere", "fingerprint": "b"},
    }
    store = Store.open(str(tmp_path / "store"))
    empty = {"payload": {}, "files": {}, "summary": {}, "provenance": {}, "content_digest": ""}
    base = {"attempt": "1", "generation": 1, "run": "r", "started": 0.0, "finished": 1.0, "wall_s": 1.0} | empty
    model = Manifest(kind="t", fingerprint="a", stage="old", inputs={}, metrics={"samples_per_s": 77.0}, **base)
    scores = Manifest(kind="e", fingerprint="c", stage="scores", inputs=inputs, metrics={}, **base)
    scores = store.publish(scores, tmp_path / "out", ("retrieval.png",))
    (shown,) = reports({"teacher": model, "scores": scores}, store, 100)
    console = Console(file=io.StringIO(), width=100)
    console.print(shown.tables)
    text = console.file.getvalue()
    assert [shown.stage, shown.pictures[0].read_bytes()] == ["scores", b"picture"]
    assert "teacher" in text
    assert "old" not in text
    assert "model from elsewhere" in text
    assert " 77 " in text
