"""Benchmark sets: a set's questions, and a model's answers to them (figures of answers: benchmark_figures.py).

A set asks one of four kinds of question. Classification: which class, by prompts averaged a class; multilabel: which
classes. Retrieval: which image belongs to a text, and which text to an image. Associations (WinoGAViL): which k of an
item's images go with its cue. Answers are small: all models' are kept while one set's features after another are not.

As DataComp and CLIP_benchmark have it, but in float32 without autocast, and equal scores keep the order of candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from orchestrator.data.benchmark import BenchmarkSet
from orchestrator.errors import DataError
from orchestrator.evaluation import metrics
from orchestrator.evaluation.encode import Encoded
from orchestrator.evaluation.protocol import CHUNK, Gallery


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
