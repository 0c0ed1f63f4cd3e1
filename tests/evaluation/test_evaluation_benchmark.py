"""Figures of benchmark sets against values worked out by hand, the official code's numbers, and chance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from orchestrator.evaluation import datacomp
from orchestrator.evaluation.benchmark import Associated, Classified, Multilabelled, Retrieved, cue_prompt, jaccard
from orchestrator.evaluation.benchmark_figures import FIGURES, aggregates, average_precision, draws, figures

ALL = {name: figure for known in FIGURES.values() for name, figure in known.items()}
REFERENCE = Path(__file__).parents[1] / "reference" / "evaluation"


def classified(target, chosen, rank=None, groups=None, num_classes=4) -> Classified:
    target, chosen = np.array(target), np.array(chosen)
    rank = np.where(target == chosen, 1, 2) if rank is None else np.array(rank)
    facts = None if groups is None else np.array(groups, float)[:, None]
    return Classified(rank, chosen, target, num_classes, facts)


TABLE = [  # classes 0 (three samples), 1 (two) and 2 (one) occur, 3 does not but is chosen once
    ("acc1", 4 / 6),
    ("mean_per_class_recall", (2 / 3 + 1 / 2 + 1) / 3),
    ("F1-macro_all", (2 * 2 / (3 + 3) + 2 * 1 / (2 + 1) + 2 * 1 / (1 + 1)) / 3),
    ("acc5", 5 / 6),
    ("acc_wg", 1 / 3),  # group 5 has 1 of 3, group 0 has 3 of 3
    ("acc_top5_wg", 2 / 3),
    ("acc_worst_region", 1.0),  # group 5 is no region
]


@pytest.mark.parametrize(("name", "expected"), TABLE)
def test_a_classifications_figures_are_those_worked_out_by_hand(name, expected):
    answers = classified([0, 0, 0, 1, 1, 2], [0, 0, 3, 1, 0, 2], [1, 1, 7, 1, 2, 1], [0, 0, 5, 5, 5, 0])
    assert ALL[name](answers, np.ones(6)) == pytest.approx(expected)


@pytest.mark.parametrize("name", [name for name, _ in TABLE])
def test_a_question_that_counts_twice_is_as_if_it_were_there_twice(name):
    rng = np.random.default_rng(0)
    target, chosen = rng.integers(0, 4, 30), rng.integers(0, 4, 30)
    groups, rank, times = rng.integers(0, 3, 30), rng.integers(1, 9, 30), rng.integers(0, 3, 30)
    twice = np.repeat(np.arange(30), times)
    one = ALL[name](classified(target, chosen, rank, groups), times.astype(float))
    other = ALL[name](classified(target[twice], chosen[twice], rank[twice], groups[twice]), np.ones(len(twice)))
    assert one == pytest.approx(other)


def test_retrieval_figures_count_texts_and_images_equally_each():
    answers = Retrieved(np.array([1, 3, 1]), np.array([1, 1, 2, 1, 6, 11]), np.array([0, 0, 0, 1, 1, 2]))
    found = figures(answers, "mean_recall@1")
    assert found["text_retrieval_recall@1"] == pytest.approx(2 / 3)
    assert found["text_retrieval_recall@5"] == 1
    assert [found[f"image_retrieval_recall@{k}"] for k in (1, 5, 10)] == pytest.approx([3 / 6, 4 / 6, 5 / 6])
    assert found["mean_recall@1"] == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_the_usual_figures_include_the_one_that_stands_for_the_set():
    found = figures(classified([0], [0], groups=[0]), "acc_wg")
    assert list(found) == ["acc_wg", "acc1", "acc5", "mean_per_class_recall"]


def test_a_figure_without_meaning_is_none():
    assert figures(classified([0], [0], groups=[5]), "acc_worst_region")["acc_worst_region"] is None
    assert figures(classified([0, 1], [0, 1]), "acc1")["acc5"] is None  # four classes
    small = Associated(np.array([0.5, 1.0]), np.array([5, 6]))
    found = figures(small, "jaccard_score_10-12")
    assert found == {"jaccard_score_10-12": None, "jaccard_score_5-6": 0.75, "avg_jaccard_score": 0.75}


def reference(name: str) -> tuple[dict, dict]:
    """Inputs and expected values of a case."""
    arrays = np.load(REFERENCE / "cases.npz")
    case = next(c for c in json.loads((REFERENCE / "cases.json").read_text())["cases"] if c["name"] == name)
    both = (case["inputs"], case["expected"])
    given, expected = ({k: arrays[v["npz"]] if "npz" in v else v["value"] for k, v in group.items()} for group in both)
    return given, expected


def test_average_precision_matches_the_official_codes_numbers():
    given, expected = reference("average_precision_per_class")
    answers = multilabelled(given["scores"], given["targets"])
    found = [average_precision(*pair, np.ones(25)) for pair in zip(answers.order.T, answers.right.T)]
    np.testing.assert_allclose(found, expected["ap"], rtol=1e-5)
    mean = figures(answers, "mean_average_precision")
    assert mean == {"mean_average_precision": pytest.approx(expected["mean_average_precision"], rel=1e-5)}
    given, expected = reference("multilabel_evaluate")
    images = given["image_features"] / np.linalg.norm(given["image_features"], axis=1, keepdims=True)
    mean = figures(multilabelled(images @ given["weights"], given["targets"]), "mean_average_precision")
    assert mean["mean_average_precision"] == pytest.approx(expected["mean_average_precision"], rel=1e-5)


def multilabelled(scores, targets) -> Multilabelled:
    return Multilabelled(np.argsort(-np.asarray(scores), axis=0, kind="stable"), np.asarray(targets) > 0)


def test_average_precision_of_a_sample_that_counts_twice_is_as_if_it_were_there_twice():
    rng = np.random.default_rng(3)
    scores, targets, times = rng.random((20, 3)), rng.random((20, 3)) < 0.4, rng.integers(0, 3, 20)
    twice = np.repeat(np.arange(20), times)
    one = ALL["mean_average_precision"](multilabelled(scores, targets), times.astype(float))
    other = ALL["mean_average_precision"](multilabelled(scores[twice], targets[twice]), np.ones(len(twice)))
    assert one == pytest.approx(other)


def test_associations_match_the_official_codes_numbers():
    given, expected = reference("winogavil")
    unit = {k: given[k] / np.linalg.norm(given[k], axis=1, keepdims=True) for k in ("image_features", "cue_features")}
    indices, start = [], 0
    for size, right, cue in zip(given["images_per_instance"], given["associations"], unit["cue_features"]):
        images = unit["image_features"][start : start + size]
        indices.append(jaccard(images @ cue, np.isin(np.arange(size), right)))
        start += size
    found = figures(Associated(np.array(indices), np.array(given["images_per_instance"])), "jaccard_score_10-12")
    for name in ("avg_jaccard_score", "jaccard_score_5-6", "jaccard_score_10-12"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)
    cues = [prompt.split(" ")[1] for prompt in expected["prompts"]]
    assert [cue_prompt(cue.upper()) for cue in cues] == expected["prompts"]


def test_perfect_answers_give_one_for_every_figure_and_random_ones_chance():
    rng = np.random.default_rng(1)
    n, c = 20_000, 10
    target = rng.integers(0, c, n)
    right = classified(target, target, groups=target % 3, num_classes=c)
    assert set(figures(right, "acc_wg").values()) == {1.0}
    rank = 1 + rng.permuted(np.tile(np.arange(c), (n, 1)), axis=1)[:, 0]
    chosen = np.where(rank == 1, target, (target + rng.integers(1, c, n)) % c)
    found = figures(classified(target, chosen, rank, target % 3, c), "acc_top5_wg")
    assert found["acc1"] == pytest.approx(1 / c, abs=0.01)
    assert found["mean_per_class_recall"] == pytest.approx(1 / c, abs=0.01)
    assert found["acc_top5_wg"] == pytest.approx(5 / c, abs=0.02)


def test_draws_are_paired_between_models_and_cover_the_figure():
    rng = np.random.default_rng(2)
    target = rng.integers(0, 4, 200)
    one, other = (classified(target, np.where(rng.random(200) < share, target, 0)) for share in (0.5, 0.6))
    drawn = draws([one, other, one], "mean_per_class_recall", 200, 0, "set")
    np.testing.assert_array_equal(drawn[:, 0], drawn[:, 2])
    assert np.quantile(drawn[:, 0], 0.05) < ALL["mean_per_class_recall"](one, np.ones(200))
    assert (drawn[:, 1] - drawn[:, 0]).std() < np.hypot(drawn[:, 0].std(), drawn[:, 1].std())
    np.testing.assert_array_equal(drawn, draws([one, other, one], "mean_per_class_recall", 200, 0, "set"))


def test_the_table_is_datacomps():
    assert len(datacomp.TASKS) == 38
    assert {name: len(keys) for name, keys in datacomp.AGGREGATES.items()} == {
        "imagenet": 1,
        "shifts": 6,
        "vtab": 13,
        "retrieval": 3,
        "average_of_38": 38,
    }
    assert {task.metric for task in datacomp.TASKS} <= set(ALL)
    others = {task.key: task.metric for task in datacomp.TASKS if task.metric != "acc1"}
    assert others == {
        "vtab/caltech101": "mean_per_class_recall",
        "fgvc_aircraft": "mean_per_class_recall",
        "vtab/flowers": "mean_per_class_recall",
        "vtab/pets": "mean_per_class_recall",
        "retrieval/flickr_1k_test_image_text_retrieval": "mean_recall@1",
        "retrieval/mscoco_2014_5k_test_image_text_retrieval": "mean_recall@1",
        "misc/winogavil": "jaccard_score_10-12",
        "wilds/iwildcam": "F1-macro_all",
        "wilds/fmow": "acc_worst_region",
        "fairness/dollar_street": "acc_top5_wg",
        "fairness/geode": "acc_wg",
    }
    assert datacomp.named("wilds/fmow").folders == ("wds_wilds-fmow_test", "wds_wilds-fmow", "wilds-fmow")
    assert datacomp.named("fairness/geode").folders[0] == "wds_geode_test"
    assert datacomp.named("vtab-pets") is datacomp.named("vtab/pets")
    assert datacomp.named("my-set").folders[-1] == "my-set"


def test_a_mean_is_called_average_of_38_only_where_all_are_there():
    keys = [task.key for task in datacomp.TASKS]
    assert list(dict(aggregates(datacomp.AGGREGATES, keys))) == [*datacomp.AGGREGATES]
    found = dict(aggregates(datacomp.AGGREGATES, keys[:-1]))
    assert "average_of_38" not in found
    assert len(found["mean_of_37"]) == 37
    assert "imagenet" in found
    assert list(dict(aggregates(datacomp.AGGREGATES, []))) == []
