"""Figures of a benchmark set's answers, by the names of DataComp and CLIP_benchmark, their intervals and their means.

Every figure is a function of answers and of how often each question counts: once for the value, as drawn for its
interval. Draws depend on the seed, the set's name and its size alone, so differences between models are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from orchestrator.data.benchmark import BenchmarkSet
from orchestrator.data.draws import integer
from orchestrator.errors import DataError
from orchestrator.evaluation.benchmark import Answers, Associated, Classified, Multilabelled, Retrieved

FMOW_OTHER = 5
"""FMoW's region "Other", which counts as no group."""


def accuracy(answers: Classified, times: np.ndarray, k: int) -> float:
    """Top-k accuracy."""
    return float(times[answers.rank <= k].sum() / times.sum())


def mean_class_recall(answers: Classified, times: np.ndarray) -> float:
    """Mean over the classes present of their accuracy."""
    present, hits, _ = _counts(answers, times)
    seen = present > 0
    return float((hits[seen] / present[seen]).mean())


def macro_f1(answers: Classified, times: np.ndarray) -> float:
    """Mean over the classes present of 2 hits / (samples of the class + samples taken for it), as in WILDS."""
    present, hits, taken = _counts(answers, times)
    seen = present > 0
    return float((2 * hits[seen] / (present + taken)[seen]).mean())


def _counts(answers: Classified, times: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By class: samples of it, those found, samples taken for it."""
    size = answers.num_classes
    present = np.bincount(answers.target, times, size)
    hits = np.bincount(answers.target, times * (answers.chosen == answers.target), size)
    return present, hits, np.bincount(answers.chosen, times, size)


def worst_group(answers: Classified, times: np.ndarray, k: int, without: int | None = None) -> float:
    """Top-k accuracy of the worst group that has samples, a group being a value of the first fact; NaN of none."""
    assert answers.facts is not None  # `main_figure` has looked
    groups, number = np.unique(answers.facts[:, 0], return_inverse=True)
    present = np.bincount(number, times)
    hits = np.bincount(number, times * (answers.rank <= k))
    counts = (present > 0) & (groups != without)
    return float((hits[counts] / present[counts]).min()) if counts.any() else float("nan")


def mean_average_precision(answers: Multilabelled, times: np.ndarray) -> float:
    """Mean over all classes of their average precision; a class that no sample shows has 0, and counts."""
    return float(np.mean([average_precision(*pair, times) for pair in zip(answers.order.T, answers.right.T)]))


def average_precision(order: np.ndarray, right: np.ndarray, times: np.ndarray) -> float:
    """Mean over the right ones of the share of right ones down to them, not interpolated.

    Args:
        order: [n] samples from the highest score down.
        right: [n] by sample.
    """
    hits = np.repeat(right[order], times[order].astype(int))
    shares = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(shares[hits].sum() / max(hits.sum(), 1))


def recall(answers: Retrieved, times: np.ndarray, k: int, of_texts: bool) -> float:
    """Recall at k: share of texts whose image, or of images one of whose texts, is among the k highest."""
    weights = times[answers.owner] if of_texts else times
    rank = answers.of_text if of_texts else answers.of_image
    return float(weights[rank <= k].sum() / weights.sum())


def mean_recall(answers: Retrieved, times: np.ndarray) -> float:
    """Mean of both ways' recall at 1."""
    return (recall(answers, times, 1, False) + recall(answers, times, 1, True)) / 2


def mean_jaccard(answers: Associated, times: np.ndarray, least: int = 1, most: int = 1 << 30) -> float:
    """Mean Jaccard index of the items with `least` to `most` candidates; NaN of none."""
    chosen = (answers.candidates >= least) & (answers.candidates <= most)
    return float((times * answers.jaccard)[chosen].sum() / times[chosen].sum())


Figure = Callable[[Any, np.ndarray], float]
FIGURES: Mapping[str, Mapping[str, Figure]] = {
    "classification": {
        "acc1": partial(accuracy, k=1),
        "acc5": partial(accuracy, k=5),
        "mean_per_class_recall": mean_class_recall,
        "F1-macro_all": macro_f1,
        "acc_wg": partial(worst_group, k=1),
        "acc_top5_wg": partial(worst_group, k=5),
        "acc_worst_region": partial(worst_group, k=1, without=FMOW_OTHER),
    },
    "multilabel": {"mean_average_precision": mean_average_precision},
    "retrieval": {
        "mean_recall@1": mean_recall,
        **{f"image_retrieval_recall@{k}": partial(recall, k=k, of_texts=True) for k in (1, 5, 10)},
        **{f"text_retrieval_recall@{k}": partial(recall, k=k, of_texts=False) for k in (1, 5, 10)},
    },
    "associations": {
        "jaccard_score_10-12": partial(mean_jaccard, least=10, most=12),
        "jaccard_score_5-6": partial(mean_jaccard, least=5, most=6),
        "avg_jaccard_score": mean_jaccard,
    },
}
"""By kind of set and DataComp's name; the first stands for a set that has no main figure of its own. "Image retrieval"
looks for the image of a text."""
GROUPED = ("acc_wg", "acc_top5_wg", "acc_worst_region")
"""Need to know each sample's group."""
SPECIAL = ("F1-macro_all", *GROUPED)
"""Reported only where they are the main figure."""


def main_figure(data: BenchmarkSet, wanted: str = "") -> str:
    """The figure that stands for a set, `wanted` if it is said which; DataError if the set cannot give it."""
    main = wanted or next(iter(FIGURES[data.kind]))
    if main not in FIGURES[data.kind]:
        raise DataError(
            f"benchmark set '{data.name}' is of type '{data.kind}', which has no figure '{main}'",
            f"is it in the right folder? Its dataset_type.txt makes it one of {', '.join(FIGURES[data.kind])}",
        )
    if main in GROUPED and data.facts is None:
        raise DataError(
            f"'{main}' of benchmark set '{data.name}' needs its samples' groups",
            "each sample has a .npy of numbers, its group first; fetch the set again (docs/evaluation.md)",
        )
    return main


def figures(answers: Answers, main: str) -> dict[str, float | None]:
    """A set's figures by name; None where one has no meaning: top-5 of fewer classes, items that there are not.

    Args:
        main: the figure that stands for the set.
    """
    once = np.ones(len(answers))
    known = FIGURES[answers.kind]
    names = dict.fromkeys((main, *(name for name in known if name not in SPECIAL)))
    found: dict[str, float | None] = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        for name in names:
            meant = not (name == "acc5" and isinstance(answers, Classified) and answers.num_classes < 5)
            value = known[name](answers, once) if meant else float("nan")
            found[name] = value if np.isfinite(value) else None
    return found


def draws(answers: Sequence[Answers], main: str, samples: int, seed: int, name: str) -> np.ndarray:
    """Bootstrap draws [samples, models] of a set's main figure; all models meet the same ones."""
    size = len(answers[0])
    rng = np.random.Generator(np.random.Philox(key=integer(seed, "bootstrap", name)))
    out = np.empty((samples, len(answers)))
    with np.errstate(invalid="ignore", divide="ignore"):
        for row in range(samples):
            times = np.bincount(rng.integers(size, size=size), minlength=size).astype(float)
            out[row] = [FIGURES[own.kind][main](own, times) for own in answers]
    return out


def aggregates(groups: Mapping[str, Sequence[str]], there: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(name, sets) of each mean that these sets allow: those named whose sets are all there, and that of what is
    there, where it has no name.
    """
    for name, keys in groups.items():
        if set(keys) <= set(there):
            yield name, tuple(keys)
    if there and set(there) not in map(set, groups.values()):
        yield f"mean_of_{len(there)}", tuple(there)
