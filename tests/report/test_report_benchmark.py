"""A benchmark's tables: on the page of a run, and at the end of one on a terminal."""

from __future__ import annotations

import io
import json

import pytest
from report_lab import Lab, picture
from rich.console import Console
from test_report_page import Reader

from orchestrator.report.summary import reports

PETS = {"key": "vtab/pets", "name": "Oxford-IIIT Pet", "metric": "mean_per_class_recall", "chance": 0.027}
ITEMS = {"key": "misc/winogavil", "name": "WinoGAViL", "metric": "jaccard_score_10-12", "chance": 0.205}


def figure(value: float | None) -> dict[str, float | None]:
    return {"value": value, "low": value and value - 0.01, "high": value and value + 0.01}


def record() -> dict:
    models = [
        {
            "tasks": {"vtab/pets": figure(0.5 + place / 10), "misc/winogavil": figure(None)},
            "means": {"mean_of_1": figure(0.5 + place / 10)},
        }
        for place in range(2)
    ]
    return {
        "intervals": {"level": 0.95, "samples": 1000, "seed": 0},
        "tasks": [PETS | {"size": 3600, "expected_size": 3669}, ITEMS | {"size": 3563, "expected_size": 3563}],
        "missing": ["cifar10", "mnist"],
        "means": {"mean_of_1": ["vtab/pets"]},
        "models": models,
    }


@pytest.fixture
def lab(tmp_path) -> Lab:
    lab = Lab(str(tmp_path / "store"), tmp_path)
    lab.dataset("pairs", [(f"thing {number}", picture(number)) for number in range(4)])
    lab.trained("base", "pairs", [3.0, 2.0])
    lab.trained("better", "pairs", [3.0, 1.0])
    lab.stage("scores", "benchmark", ["base", "better"])
    made = {"benchmark.json": json.dumps(record()).encode()}
    lab.finish("scores", made, inputs={"models.0": "base", "models.1": "better"})
    return lab


FACTS = (
    "mean of 1",
    "Oxford-IIIT Pet",
    "mean_per_class_recall",
    "3,600",
    "60.0",
    "2 of 4 sets were not there: cifar10, mnist",
    "vtab/pets 3,600 instead of 3,669",
    "1,000 draws",
)


def test_the_page_of_a_run_shows_means_tasks_and_what_is_missing(lab):
    text = Reader(lab.page()).text
    assert [fact for fact in ("Benchmarks", *FACTS, "59.0-61.0") if fact not in text] == []


def test_the_end_of_a_run_shows_them_on_a_terminal(lab):
    console = Console(file=io.StringIO(), width=100)
    (shown,) = reports(lab.made, lab.store, 100)
    console.print(shown.tables)
    text = " ".join(console.file.getvalue().split())
    assert [fact for fact in FACTS if fact not in text] == []
    assert "average" not in text
    assert max(map(len, console.file.getvalue().splitlines())) <= 100
