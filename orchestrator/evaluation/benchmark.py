"""Benchmark sets as DataComp scores them: a set's questions, a model's answers, and figures of answers.

A set asks one of four kinds of question. Classification: which class, by prompts averaged a class; multilabel: which
classes. Retrieval: which image belongs to a text, and which text to an image. Associations (WinoGAViL): which k of an
item's images go with its cue. Answers are small and kept for all models. A figure is a function of answers and of how
often each question counts: once for the value, as drawn for its interval. The draws depend on the seed, the set's name
and its size alone, so differences between models are paired.

Figures bear the names of DataComp and CLIP_benchmark. Differences: float32, no autocast; equal scores keep the order
of candidates; a worst group is the worst of those that have samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from orchestrator.data.benchmark import BenchmarkSet
from orchestrator.data.draws import integer
from orchestrator.errors import DataError
from orchestrator.evaluation import metrics
from orchestrator.evaluation.encode import Encoded
from orchestrator.evaluation.protocol import CHUNK, Gallery

FMOW_OTHER = 5
"""FMoW's region "Other", which counts as no group."""


@dataclass(frozen=True)
class Classified:
    """Answers to a classification: [n] rank of the right class, the class chosen, the right one; facts [n, m]."""

    kind: ClassVar[str] = "classification"
    rank: np.ndarray
    chosen: np.ndarray
    target: np.ndarray
    num_classes: int
    facts: np.ndarray | None

    def __len__(self) -> int:
        return len(self.rank)


@dataclass(frozen=True)
class Multilabelled:
    """Answers where a sample may show several classes: samples [n, C] in falling order of each class's score, and
    whether a sample shows a class [n, C].
    """

    kind: ClassVar[str] = "multilabel"
    order: np.ndarray
    right: np.ndarray

    def __len__(self) -> int:
        return len(self.right)


@dataclass(frozen=True)
class Retrieved:
    """Answers to a retrieval: rank of each image's best text [n], of each text's image [t], that image [t]."""

    kind: ClassVar[str] = "retrieval"
    of_image: np.ndarray
    of_text: np.ndarray
    owner: np.ndarray

    def __len__(self) -> int:
        return len(self.of_image)


@dataclass(frozen=True)
class Associated:
    """Answers to items of associations: [n] Jaccard index of the chosen and the right images, and how many there
    were.
    """

    kind: ClassVar[str] = "associations"
    jaccard: np.ndarray
    candidates: np.ndarray

    def __len__(self) -> int:
        return len(self.jaccard)


Answers = Classified | Multilabelled | Retrieved | Associated


@dataclass(frozen=True)
class Questions:
    """What a set asks: the rows and texts to encode, and how a model's answers come of them."""

    rows: np.ndarray
    texts: tuple[str, ...]
    answer: Callable[[Encoded], Answers]


def questions(data: BenchmarkSet, limit: int | None = None) -> Questions:
    """A set's questions, or the first `limit` of them; DataError if what it holds is not enough to ask any."""
    asked = KINDS.get(data.kind)
    if asked is None:
        raise DataError(f"benchmark set '{data.name}' is of type '{data.kind}'", f"types known: {', '.join(KINDS)}")
    return asked(data, limit)


def _classification(data: BenchmarkSet, limit: int | None) -> Questions:
    texts, target = _prompts(data), data.labels[:limit]
    bad = np.flatnonzero((target < 0) | (target >= len(data.classes)))
    if len(bad):
        raise DataError(
            f"{len(bad):,} samples of benchmark set '{data.name}' have no class among its {len(data.classes)}, "
            f"the first is '{data.keys[bad[0]]}'",
            "each needs a .cls with the number of a line of classnames.txt, from 0",
        )

    def answer(encoded: Encoded) -> Classified:
        rank, chosen = [], []
        for part, scores in _class_scores(data, texts, len(target), encoded):
            rank.append(metrics.ranks(scores, target[part]))
            chosen.append(scores.argmax(axis=1))
        facts = None if data.facts is None else data.facts[:limit]
        return Classified(np.concatenate(rank), np.concatenate(chosen), target, len(data.classes), facts)

    return Questions(np.arange(len(target)), texts, answer)


def _multilabel(data: BenchmarkSet, limit: int | None) -> Questions:
    texts = _prompts(data)
    if data.facts is None or data.facts.shape[1] != len(data.classes):
        raise DataError(
            f"samples of benchmark set '{data.name}' do not say which of its {len(data.classes)} classes they show",
            "each needs a .npy with a 0 or 1 for each line of classnames.txt",
        )
    right = data.facts[:limit] > 0

    def answer(encoded: Encoded) -> Multilabelled:
        scores = np.concatenate([found for _, found in _class_scores(data, texts, len(right), encoded)])
        return Multilabelled(np.argsort(-scores, axis=0, kind="stable"), right)

    return Questions(np.arange(len(right)), texts, answer)


def _prompts(data: BenchmarkSet) -> tuple[str, ...]:
    """Prompts, class by class; DataError if there are none."""
    wrong = [template for template in data.templates if "{c}" not in template]
    if not data.classes or not data.templates or wrong:
        raise DataError(
            f"benchmark set '{data.name}' has {len(data.classes)} class names and {len(data.templates)} templates, "
            f"{len(wrong)} of them without {{c}}",
            "a classification needs classnames.txt and zeroshot_classification_templates.txt, one a line; "
            "a retrieval says so in dataset_type.txt",
        )
    return tuple(template.replace("{c}", name) for name in data.classes for template in data.templates)


def _class_scores(
    data: BenchmarkSet, texts: Sequence[str], size: int, encoded: Encoded
) -> Iterator[tuple[slice, np.ndarray]]:
    """(samples, scores [samples, classes]) of the first `size` samples, CHUNK at a time."""
    weights = metrics.classifier_weights(encoded.of_texts(texts), [len(data.templates)] * len(data.classes))
    for start in range(0, size, CHUNK):
        part = slice(start, min(start + CHUNK, size))
        yield part, encoded.scores(encoded.of_rows(np.arange(part.start, part.stop)), weights)


def _retrieval(data: BenchmarkSet, limit: int | None) -> Questions:
    captions = data.captions[:limit]
    bare = [place for place, own in enumerate(captions) if not own]
    if bare:
        raise DataError(
            f"{len(bare):,} images of benchmark set '{data.name}' have no caption, the first is "
            f"'{data.keys[bare[0]]}'",
            "each needs a .txt with its captions, one a line",
        )
    owner = np.repeat(np.arange(len(captions)), [len(own) for own in captions])
    texts = tuple(text for own in captions for text in own)
    gallery = Gallery("test", "", np.arange(len(captions)), texts, owner)

    def answer(encoded: Encoded) -> Retrieved:
        return Retrieved(gallery.ranks(encoded, of_texts=False), gallery.ranks(encoded, of_texts=True), owner)

    return Questions(gallery.rows, texts, answer)


def _associations(data: BenchmarkSet, limit: int | None) -> Questions:
    place = {key: row for row, key in enumerate(data.keys)}
    items = data.associations[:limit]
    for item in items:
        if not set(item["associations"]) <= set(item["candidates"]) <= set(place) or not item["associations"]:
            raise DataError(
                f"benchmark set '{data.name}': the item of cue '{item['cue']}' names images that are not there",
                "its candidates are keys of images in the shards, its associations some of the candidates",
            )
    prompts = [cue_prompt(item["cue"]) for item in items]
    rows = [np.array([place[key] for key in item["candidates"]]) for item in items]
    right = [np.isin(item["candidates"], item["associations"]) for item in items]

    def answer(encoded: Encoded) -> Associated:
        scores = [
            encoded.scores(encoded.of_rows(own), encoded.of_texts([prompt]))[:, 0]
            for own, prompt in zip(rows, prompts)
        ]
        return Associated(
            np.array([jaccard(one, truth) for one, truth in zip(scores, right)]), np.array([len(own) for own in rows])
        )

    used = np.unique(np.concatenate(rows)) if rows else np.array([], np.int64)
    return Questions(used, tuple(prompts), answer)


KINDS: Mapping[str, Callable[[BenchmarkSet, int | None], Questions]] = {
    "classification": _classification,
    "multilabel": _multilabel,
    "retrieval": _retrieval,
    "associations": _associations,
}


def cue_prompt(cue: str) -> str:
    """WinoGAViL's prompt: "A werewolf", "An owl", the cue in lower case."""
    cue = cue.lower()
    return f"{'An' if cue[:1] in tuple('aeiou') else 'A'} {cue}"


def jaccard(scores: np.ndarray, right: np.ndarray) -> float:
    """Jaccard index of the right candidates (`right` [c]) and the equally many that score highest (`scores` [c])."""
    chosen = np.zeros(len(right), bool)
    chosen[metrics.best(scores[None], int(right.sum()))[0]] = True
    return float((chosen & right).sum() / (chosen | right).sum())


# Figures: of answers, and of times [questions], how often each counts.


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
    """Top-k accuracy of the worst group, a group being a value of the first fact; DataError if there are no facts."""
    if answers.facts is None:
        raise DataError("the set has no facts to group its samples by", "each sample needs a .npy, its group first")
    groups, number = np.unique(answers.facts[:, 0], return_inverse=True)
    present = np.bincount(number, times)
    hits = np.bincount(number, times * (answers.rank <= k))
    counts = (present > 0) & (groups != without)
    return float((hits[counts] / present[counts]).min())


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


def mean_jaccard(answers: Associated, times: np.ndarray, least: int, most: int) -> float:
    """Mean Jaccard index of the items with `least` to `most` candidates."""
    chosen = (answers.candidates >= least) & (answers.candidates <= most)
    return float((times * answers.jaccard)[chosen].sum() / times[chosen].sum())


Metric = Callable[[Any, np.ndarray], float]
METRICS: Mapping[str, Metric] = {
    "acc1": partial(accuracy, k=1),
    "acc5": partial(accuracy, k=5),
    "mean_per_class_recall": mean_class_recall,
    "F1-macro_all": macro_f1,
    "acc_wg": partial(worst_group, k=1),
    "acc_top5_wg": partial(worst_group, k=5),
    "acc_worst_region": partial(worst_group, k=1, without=FMOW_OTHER),
    "mean_average_precision": mean_average_precision,
    "mean_recall@1": mean_recall,
    **{f"image_retrieval_recall@{k}": partial(recall, k=k, of_texts=True) for k in (1, 5, 10)},
    **{f"text_retrieval_recall@{k}": partial(recall, k=k, of_texts=False) for k in (1, 5, 10)},
    "jaccard_score_10-12": partial(mean_jaccard, least=10, most=12),
    "jaccard_score_5-6": partial(mean_jaccard, least=5, most=6),
    "avg_jaccard_score": partial(mean_jaccard, least=1, most=10**6),
}
"""By DataComp's name. "Image retrieval" looks for the image of a text."""
USUAL: Mapping[str, tuple[str, ...]] = {
    "classification": ("acc1", "acc5", "mean_per_class_recall"),
    "multilabel": ("mean_average_precision",),
    "retrieval": ("mean_recall@1", *(f"{way}_retrieval_recall@{k}" for way in ("image", "text") for k in (1, 5, 10))),
    "associations": ("jaccard_score_10-12", "jaccard_score_5-6", "avg_jaccard_score"),
}
"""What is reported of every set of a kind, the main figure of sets without another first."""


def main_figure(data: BenchmarkSet) -> str:
    """What stands for a set that has no main figure of its own."""
    return USUAL[data.kind][0]


def figures(answers: Answers, main: str) -> dict[str, float | None]:
    """A set's figures by name; None where one has no meaning: top-5 of fewer classes, items that there are not.

    Args:
        main: the figure that stands for the set.
    """
    once = np.ones(len(answers))
    names = dict.fromkeys((main, *USUAL[answers.kind]))
    found: dict[str, float | None] = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        for name in names:
            meant = not (name == "acc5" and isinstance(answers, Classified) and answers.num_classes < 5)
            value = METRICS[name](answers, once) if meant else float("nan")
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
            out[row] = [METRICS[main](own, times) for own in answers]
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
