"""Ranks and what follows from them, against the official code's numbers and against properties that must hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from orchestrator.evaluation import metrics

REFERENCE = Path(__file__).parents[1] / "reference" / "evaluation"


@pytest.fixture(scope="module")
def cases():
    arrays = np.load(REFERENCE / "cases.npz")

    def resolve(group):
        return {name: arrays[entry["npz"]] if "npz" in entry else entry["value"] for name, entry in group.items()}

    listed = json.loads((REFERENCE / "cases.json").read_text())["cases"]
    return {case["name"]: (resolve(case["inputs"]), resolve(case["expected"])) for case in listed}


def test_classifier_weights_with_a_different_number_of_prompts_a_class_match_the_reference(cases):
    given, expected = cases["zero_shot_classifier_per_class_prompts"]
    weights = metrics.classifier_weights(torch.from_numpy(given["prompt_features"]), given["prompts_per_class"])
    np.testing.assert_allclose(weights.numpy().T, expected["weights"], rtol=1e-5, atol=1e-6)


def test_scores_against_classifier_weights_are_the_reference_logits_over_100(cases):
    given, expected = cases["run_classification_logits"]
    images = normalize(torch.from_numpy(given["image_features"]), dim=-1)
    np.testing.assert_allclose(100 * images.numpy() @ given["weights"], expected["logits"], rtol=1e-5, atol=1e-5)


def test_top_k_accuracy_matches_the_reference(cases):
    given, expected = cases["accuracy_topk"]
    rank = metrics.ranks(given["output"], given["target"])
    np.testing.assert_allclose([metrics.within(rank, k) for k in (1, 2, 3, 4)], expected["accuracies"])


def test_retrieval_recall_with_five_captions_matches_the_reference(cases):
    given, expected = cases["retrieval_5_captions"]
    images = normalize(torch.from_numpy(given["image_features"]), dim=-1).numpy()
    texts = normalize(torch.from_numpy(given["text_features"]), dim=-1).numpy()
    owner = given["text_image_index"]
    text_to_image = metrics.ranks(texts @ images.T, owner)
    image_to_text = metrics.best_ranks(images @ texts.T, np.arange(len(images))[:, None] == owner)
    for k in (1, 5, 8):
        assert metrics.within(text_to_image, k) == pytest.approx(expected[f"image_retrieval_recall@{k}"])
        assert metrics.within(image_to_text, k) == pytest.approx(expected[f"text_retrieval_recall@{k}"])


def test_one_template_gives_the_normalised_prompt():
    prompts = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(metrics.classifier_weights(prompts, [1] * 5), normalize(prompts, dim=-1))


def test_ranks_agree_with_a_stable_descending_sort_also_among_ties():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, size=(200, 9)).astype(np.float32)
    target = rng.integers(0, 9, size=200)
    order = metrics.best(scores, 9)
    np.testing.assert_array_equal(metrics.ranks(scores, target), 1 + (order == target[:, None]).argmax(axis=1))


def test_the_best_of_ragged_right_answers_counts_also_among_ties():
    rng = np.random.default_rng(1)
    owner = np.repeat(np.arange(7), [1, 3, 5, 2, 1, 4, 2])
    scores = rng.integers(0, 5, size=(7, len(owner))).astype(np.float32)
    right = np.arange(7)[:, None] == owner
    hits = np.take_along_axis(right, metrics.best(scores, len(owner)), axis=1)
    np.testing.assert_array_equal(metrics.best_ranks(scores, right), 1 + hits.argmax(axis=1))


def test_mean_class_recall_counts_only_classes_that_occur():
    target, rank = np.array([0, 0, 0, 3]), np.array([1, 1, 2, 1])
    assert metrics.mean_class_recall(rank, target) == pytest.approx((2 / 3 + 1) / 2)


@pytest.mark.parametrize(
    ("candidates", "positives", "k", "expected"),
    [(10, 1, 1, 0.1), (10, 1, 5, 0.5), (3, 1, 5, 1.0), (10, 5, 1, 0.5), (4, 2, 2, 1 - 2 / 4 * 1 / 3), (4, 2, 3, 1.0)],
)
def test_chance_is_the_share_of_random_orders_with_a_hit(candidates, positives, k, expected):
    one = metrics.chance(np.array([candidates]), np.array([positives]), k)
    assert one == pytest.approx(expected)
    rng = np.random.default_rng(2)
    scores = rng.random((4000, candidates))
    right = np.tile(np.arange(candidates) < positives, (4000, 1))
    assert metrics.within(metrics.best_ranks(scores, right), k) == pytest.approx(expected, abs=0.03)


def test_intervals_cover_the_true_share_about_as_often_as_they_say():
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(200):
        hits = (rng.random((150, 1)) < 0.3).astype(float)
        low, high = metrics.interval(metrics.draws(hits, np.arange(150), 200, trial, "coverage")[:, 0])
        covered += low <= 0.3 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_draws_repeat_for_equal_names_and_differ_for_others():
    hits, units = (np.arange(50) % 3 == 0).astype(float)[:, None], np.arange(50)
    once = metrics.draws(hits, units, 20, 0, "zeroshot.id")
    np.testing.assert_array_equal(once, metrics.draws(hits, units, 20, 0, "zeroshot.id"))
    assert not np.array_equal(once, metrics.draws(hits, units, 20, 1, "zeroshot.id"))
    assert not np.array_equal(once, metrics.draws(hits, units, 20, 0, "zeroshot.ood"))


def test_draws_of_two_models_share_their_resamples():
    rng = np.random.default_rng(4)
    one = (rng.random(300) < 0.4).astype(float)
    other = 1 - one
    drawn = metrics.draws(np.stack([one, other], axis=1), np.arange(300), 100, 0, "paired")
    np.testing.assert_allclose(drawn.sum(axis=1), 1)


def test_captions_of_one_image_are_resampled_together():
    units = np.repeat(np.arange(40), 5)
    hits = (units % 2).astype(float)[:, None]
    spread = metrics.draws(hits, units, 400, 0, "clusters").std()
    assert spread == pytest.approx(np.sqrt(0.25 / 40), rel=0.2)


def test_a_model_compared_with_itself_differs_by_nothing():
    hits = (np.random.default_rng(5).random((100, 1)) < 0.5).astype(float)
    drawn, value = metrics.draws(hits, np.arange(100), 100, 0, "self")[:, 0], float(hits.mean())
    compared = metrics.compare(value, value, drawn, drawn)
    assert [compared[f"difference{end}"] for end in ("", ".low", ".high")] == [0, 0, 0]
    assert [compared[f"ratio{end}"] for end in ("", ".low", ".high")] == [1, 1, 1]


def test_a_ratio_to_zero_has_no_value_and_a_bound_beyond_reach_is_none():
    assert metrics.compare(0.5, 0.0, np.full(9, 0.5), np.zeros(9)) == {
        "difference": 0.5,
        "difference.low": 0.5,
        "difference.high": 0.5,
        "ratio": None,
        "ratio.low": None,
        "ratio.high": None,
    }
    rare = np.where(np.arange(100) < 10, 0.0, 0.1)
    compared = metrics.compare(0.5, 0.09, np.full(100, 0.5), rare)
    assert compared["ratio.low"] == pytest.approx(5)
    assert compared["ratio.high"] is None
