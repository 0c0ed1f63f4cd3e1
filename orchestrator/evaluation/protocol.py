"""The evaluation protocol: which questions a data set asks of a model, the same for every model.

Splits are the columns of the final table: `train`, `id` (held-out concept x style cells whose concept was seen in
another style), `ood` (the held-out drawing style), `unseen` (concepts never trained).

Zero-shot classes are all training concepts, also for `id` and `ood`; those of `unseen` are the unseen concepts alone.
A class is called by its concept's primary caption. Retrieval is within one style, for in another style the same
concept would be a false negative.

A sample's candidates stand in a fixed order (classes by concept, samples by uid), so results do not depend on the
order of the data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from orchestrator.data.dataset import Dataset
from orchestrator.errors import UserError
from orchestrator.evaluation import metrics
from orchestrator.evaluation.config import Retrieval, TaskConfig, ZeroShot
from orchestrator.evaluation.encode import Encoded

CHUNK = 512
"""Queries scored at once: bounds memory to CHUNK x candidates."""
ALL = "all"
"""The one split of data that have no split column."""


class Ranker(Protocol):
    """Answers a measure's questions with a model."""

    def __call__(self, encoded: Encoded) -> np.ndarray:
        """The rank [Q] of each question's best right answer."""


@dataclass(frozen=True)
class Measure:
    """Questions, and what is reported of their ranks under `name`.

    Attributes:
        name: "zeroshot.id", "retrieval.ood.text_to_image": the stable beginning of its figures' names.
        split: the table's column.
        label: "top" or "r", followed by k in the figures' names.
        ks: the k reported.
        rows: data set rows [Q] the questions are about.
        units: [Q] number of the sample asked about, from 0: what the bootstrap resamples.
        candidates, positives: [Q] how many candidates a question has, and how many are right.
        target: [Q] class, for measures that also report mean per-class recall.
        sizes: counts printed beside the figures.
        about: further facts for the record (templates).
        image_rows, texts: what must be encoded.
        rank: answers them.
    """

    name: str
    split: str
    label: str
    ks: tuple[int, ...]
    rows: np.ndarray
    units: np.ndarray
    candidates: np.ndarray
    positives: np.ndarray
    target: np.ndarray | None
    sizes: Mapping[str, int]
    about: Mapping[str, Any]
    image_rows: np.ndarray
    texts: tuple[str, ...]
    rank: Ranker


def zeroshot(config: ZeroShot, dataset: Dataset) -> list[Measure]:
    """One measure a split; UserError if the data have no concepts or lack a split asked for."""
    if "concept" not in dataset.columns:
        raise UserError(
            f"zero-shot classification needs the column 'concept'; '{dataset.name}' has {_listed(dataset.columns)}",
            "use the task 'retrieval', which needs captions only, or data with labels",
        )
    concepts = np.asarray(dataset.column("concept"), object)
    splits = _splits(dataset, config, ("id", "ood", "unseen"))
    train = _rows_of(dataset).get("train", np.arange(len(dataset)))
    named = _class_names(dataset, concepts)
    return [
        _classify(config, split, rows, concepts, _classes(concepts[rows if split == "unseen" else train]), named)
        for split, rows in splits.items()
    ]


def _classes(concepts: np.ndarray) -> list[str]:
    """The concepts there are, sorted; a sample may have none (None)."""
    return sorted(set(concepts) - {None})


def _classify(
    config: ZeroShot,
    split: str,
    rows: np.ndarray,
    concepts: np.ndarray,
    classes: Sequence[str],
    named: Mapping[str, str],
) -> Measure:
    number = {concept: place for place, concept in enumerate(classes)}
    kept = np.array([row for row in rows if concepts[row] in number], dtype=np.int64)
    if not len(kept):
        raise UserError(f"no sample of split '{split}' shows a training concept", "leave that split out of the task")
    target = np.array([number[concepts[row]] for row in kept])
    prompts = [[t.replace("{c}", named[concept]) for t in config.templates] for concept in classes]
    texts = [text for group in prompts for text in group]

    def rank(encoded: Encoded) -> np.ndarray:
        weights = metrics.classifier_weights(encoded.of_texts(texts), [len(group) for group in prompts])
        parts = []
        for start in range(0, len(kept), CHUNK):
            part = slice(start, start + CHUNK)
            parts.append(metrics.ranks(encoded.scores(encoded.of_rows(kept[part]), weights), target[part]))
        return np.concatenate(parts)

    return Measure(
        name=f"zeroshot.{split}",
        split=split,
        label="top",
        ks=tuple(k for k in config.ks if k <= len(classes)),
        rows=kept,
        units=np.arange(len(kept)),
        candidates=np.full(len(kept), len(classes)),
        positives=np.ones(len(kept), dtype=np.int64),
        target=target,
        sizes={"n": len(kept), "classes": len(classes), "without_class": len(rows) - len(kept)},
        about={"templates": list(config.templates)},
        image_rows=kept,
        texts=tuple(texts),
        rank=rank,
    )


@dataclass(frozen=True)
class Gallery:
    """Images of one split in one style (data set rows `rows`) and their captions; text j is of image owner[j]."""

    split: str
    style: str
    rows: np.ndarray
    texts: tuple[str, ...]
    owner: np.ndarray

    def chunks(self, encoded: Encoded, of_texts: bool):
        """(queries, scores [queries, candidates]) over CHUNK queries at a time; queries are texts or images."""
        images, texts = encoded.of_rows(self.rows), encoded.of_texts(self.texts)
        for start in range(0, len(self.texts) if of_texts else len(self.rows), CHUNK):
            part = slice(start, start + CHUNK)
            if of_texts:
                yield part, encoded.scores(images, texts[part]).T
            else:
                yield part, encoded.scores(images[part], texts)

    def ranks(self, encoded: Encoded, of_texts: bool) -> np.ndarray:
        """The rank of each text's image among the images, or of each image's best text among the texts."""
        parts = []
        for part, scores in self.chunks(encoded, of_texts):
            if of_texts:
                parts.append(metrics.ranks(scores, self.owner[part]))
            else:
                images = np.arange(len(self.rows))[part]
                parts.append(metrics.best_ranks(scores, images[:, None] == self.owner[None, :]))
        return np.concatenate(parts)


def retrieval(config: Retrieval, dataset: Dataset) -> list[Measure]:
    """Two measures a split, image to text and text to image; UserError if the data lack a split asked for."""
    measures = []
    grouped: dict[str, list[Gallery]] = {}
    for gallery in galleries(config, dataset):
        grouped.setdefault(gallery.split, []).append(gallery)
    for split, group in grouped.items():
        measures += [_retrieve(config, split, group, of_texts=False), _retrieve(config, split, group, of_texts=True)]
    return measures


def galleries(config: Retrieval, dataset: Dataset) -> list[Gallery]:
    """The galleries of a retrieval task, by split as configured, then by style.

    A sample's texts are its captions that share slot and language with the primary one: one name for a drawing, five
    sentences for a COCO image, but not a translation or a keyword list.
    """
    styles = np.asarray(dataset.column("style")).astype(str) if "style" in dataset.columns else None
    found = []
    for split, rows in _splits(dataset, config, ("id", "ood")).items():
        for style in sorted(set(styles[rows])) if styles is not None else [""]:
            members = rows[styles[rows] == style] if styles is not None else rows
            texts, owner = [], []
            for place, captions in enumerate(dataset.captions(members.tolist())):
                like = (captions[0].slot, captions[0].lang)
                own = [caption.text for caption in captions if (caption.slot, caption.lang) == like]
                texts += own
                owner += [place] * len(own)
            found.append(Gallery(split, style, members, tuple(texts), np.array(owner)))
    return found


def _retrieve(config: Retrieval, split: str, group: Sequence[Gallery], of_texts: bool) -> Measure:
    def rank(encoded: Encoded) -> np.ndarray:
        return np.concatenate([gallery.ranks(encoded, of_texts) for gallery in group])

    def each(value) -> np.ndarray:
        return np.concatenate([value(gallery) for gallery in group])

    rows, texts = each(lambda g: g.rows), each(lambda g: g.rows[g.owner])
    number = {int(row): place for place, row in enumerate(rows)}
    asked = texts if of_texts else rows
    return Measure(
        name=f"retrieval.{split}.{'text_to_image' if of_texts else 'image_to_text'}",
        split=split,
        label="r",
        ks=tuple(config.ks),
        rows=asked,
        units=np.array([number[int(row)] for row in asked]),
        candidates=each(
            lambda g: np.full(len(g.texts), len(g.rows)) if of_texts else np.full(len(g.rows), len(g.texts))
        ),
        positives=np.ones(len(texts), dtype=np.int64) if of_texts else each(lambda g: np.bincount(g.owner)),
        target=None,
        sizes={"n": len(asked), "images": len(rows), "texts": len(texts), "styles": len(group)},
        about={},
        image_rows=rows,
        texts=tuple(text for gallery in group for text in gallery.texts),
        rank=rank,
    )


def _splits(dataset: Dataset, config: TaskConfig, usual: Sequence[str]) -> dict[str, np.ndarray]:
    """Rows in uid order of each split to evaluate; data without one of the usual splits are one split, `all`."""
    there = _rows_of(dataset)
    if config.splits is not None:
        missing = [split for split in config.splits if split not in there]
        if missing:
            raise UserError(
                f"'{dataset.name}' has no sample of split {_listed(missing)}; its splits are {_listed(sorted(there))}",
                "name splits it has, or leave `splits` out",
            )
        wanted = {split: there[split] for split in config.splits}
    else:
        wanted = {split: there[split] for split in usual if split in there} or {ALL: np.arange(len(dataset))}
    uids = np.asarray(dataset.uids)
    return {split: rows[np.argsort(uids[rows])][: config.max_samples] for split, rows in wanted.items()}


def _rows_of(dataset: Dataset) -> dict[str, np.ndarray]:
    if "split" not in dataset.columns:
        return {}
    column = np.asarray(dataset.column("split")).astype(str)
    return {str(split): np.flatnonzero(column == split) for split in np.unique(column)}


def _class_names(dataset: Dataset, concepts: np.ndarray) -> dict[str, str]:
    """By concept its most frequent primary caption, the alphabetically first of equals."""
    counts: dict[str, Counter[str]] = {}
    for concept, captions in zip(concepts, dataset.captions(range(len(dataset)))):
        counts.setdefault(concept, Counter())[captions[0].text] += 1
    return {concept: min(names, key=lambda name: (-names[name], name)) for concept, names in counts.items()}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
