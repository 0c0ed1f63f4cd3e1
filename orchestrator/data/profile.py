"""What is in a data set, in figures: sizes, languages, captions, columns; and how two versions of one differ.

Both go block by block, so memory does not grow with the data; of a large set some blocks are looked at, drawn by a
permutation, and the figures say so. Differences hold 24 bytes a sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from orchestrator.data.dataset import Dataset
from orchestrator.data.sampler import permute
from orchestrator.data.tables import FORMATS

MOST = 1_000_000
"""Rows that are looked at, about."""
COMPARED = 200_000_000
"""Samples of a data set that is still compared, id by id."""
SIDES = (32, 64, 128, 256, 512, 1024)
WORDS = (1, 2, 3, 5, 8, 13, 21, 34, 55)
"""Edges of the histograms: shorter sides in pixels, words of the primary caption."""
TOP = 12
"""Values of a column that are named, the most frequent first."""


@dataclass
class Profile:
    """Figures of a data set.

    Attributes:
        samples, rows, shards, shard_bytes: selected, in the tables, and the shards they lie in.
        looked_at: samples behind the rest.
        image_bytes: of these samples, in all.
        formats, languages, slots, splits: how many samples (captions) have each.
        sides, words: samples up to each edge of `SIDES` and `WORDS`, and above the last.
        distinct: different primary captions among those looked at.
        numbers: by column, smallest, mean and largest.
        values: by column of text, the most frequent values and how many there are.
    """

    samples: int
    rows: int
    shards: int
    shard_bytes: int
    looked_at: int = 0
    image_bytes: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    slots: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    sides: np.ndarray = field(default_factory=lambda: np.zeros(len(SIDES) + 1, np.int64))
    words: np.ndarray = field(default_factory=lambda: np.zeros(len(WORDS) + 1, np.int64))
    distinct: int = 0
    numbers: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    values: dict[str, tuple[list[tuple[str, int]], int]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        edges = {"sides": SIDES, "words": WORDS}
        plain = {name: value for name, value in vars(self).items() if name not in edges}
        for name, limits in edges.items():
            labels = [*(f"<= {edge}" for edge in limits), f"> {limits[-1]}"]
            plain[name] = dict(zip(labels, getattr(self, name).tolist()))
        return plain


def profile(dataset: Dataset, most: int = MOST) -> Profile:
    """The figures of a data set, from about `most` of its rows."""
    shards = dataset.shards
    found = Profile(len(dataset), dataset.num_rows, len(shards), sum(size for _, size in shards))
    captions: set[str] = set()
    sums: dict[str, list[float]] = {}
    texts: dict[str, Counter[str]] = {}
    for part in _some(dataset, most):
        _look(found, part, captions)
        for name in part.columns:
            if name in ("uid", "image_digest", "caption", "key", "source_uid", "split", "width", "height"):
                continue
            _column(part.column(name), name, sums, texts)
    found.distinct = len(captions)
    found.numbers = {name: (low, total / count, high) for name, (low, total, high, count) in sums.items() if count}
    found.values = {name: (counts.most_common(TOP), len(counts)) for name, counts in texts.items()}
    return found


def _some(dataset: Dataset, most: int) -> Iterator[Dataset]:
    """The blocks' samples, or those of some of the blocks."""
    blocks = dataset.blocks()
    if dataset.num_rows > most:
        wanted = max(1, round(len(blocks) * most / dataset.num_rows))
        chosen = np.sort(permute(np.arange(wanted), len(blocks), 0, 0))
        blocks = [blocks[number] for number in chosen.tolist()]
    for start, stop in blocks:
        part = dataset.part(start, stop)
        if len(part):
            yield part


def _look(found: Profile, part: Dataset, distinct: set[str]) -> None:
    found.looked_at += len(part)
    found.image_bytes += int(part.index("image_bytes").sum())
    found.formats.update(FORMATS[code] for code in part.index("format").tolist())
    captions = part.captions(range(len(part)))
    for several in captions:
        found.languages.update({caption.lang for caption in several})
        found.slots.update({caption.slot for caption in several})
        distinct.add(several[0].text)
    counts = np.array([len(several[0].text.split()) for several in captions])
    found.words += np.bincount(np.searchsorted(WORDS, counts), minlength=len(WORDS) + 1)
    if "split" in part.columns:
        found.splits.update(part.column("split").tolist())
    if {"width", "height"} <= set(part.columns):
        sides = np.minimum(part.column("width"), part.column("height")).astype(float)
        sides = sides[np.isfinite(sides)]
        found.sides += np.bincount(np.searchsorted(SIDES, sides), minlength=len(SIDES) + 1)


def _column(values: np.ndarray, name: str, sums: dict[str, list[float]], texts: dict[str, Counter[str]]) -> None:
    if values.dtype.kind in "iufb":
        numbers = values.astype(np.float64)
        numbers = numbers[np.isfinite(numbers)]
        if numbers.size:
            low, total, high, count = sums.get(name, [np.inf, 0.0, -np.inf, 0.0])
            low, high = min(low, float(numbers.min())), max(high, float(numbers.max()))
            sums[name] = [low, total + float(numbers.sum()), high, count + numbers.size]
    elif len(texts.get(name, ())) < MOST:
        texts.setdefault(name, Counter()).update(value for value in values.tolist() if isinstance(value, str))


@dataclass(frozen=True)
class Difference:
    """How the samples of two data sets differ.

    Attributes:
        both, only_a, only_b: distinct samples in both, or in one.
        splits: by split, how many samples A and B have.
        recaptioned: of those in both that were looked at, how many have another primary caption; and of how many.
        columns_a, columns_b: columns that only one has.
        examples_a, examples_b: captions of some samples that only one has, by uid order.
    """

    both: int
    only_a: int
    only_b: int
    splits: Mapping[str, tuple[int, int]]
    recaptioned: tuple[int, int]
    columns_a: Sequence[str]
    columns_b: Sequence[str]
    examples_a: Sequence[str]
    examples_b: Sequence[str]


def difference(a: Dataset, b: Dataset, looked_at: int = 20_000, examples: int = 5) -> Difference | None:
    """Compare two data sets by ids; None if they are too large to be compared id by id."""
    if max(len(a), len(b)) > COMPARED:
        return None
    ids = [np.unique(_keys(data), return_index=True) for data in (a, b)]
    (keys_a, rows_a), (keys_b, rows_b) = ids
    in_b = np.isin(keys_a, keys_b, assume_unique=True)
    in_a = np.isin(keys_b, keys_a, assume_unique=True)
    shared_a, shared_b = rows_a[in_b][:looked_at], rows_b[in_a][:looked_at]
    changed = [one[0].text != other[0].text for one, other in zip(a.captions(shared_a), b.captions(shared_b))]
    splits = [Counter(data.column("split").tolist()) if "split" in data.columns else Counter() for data in (a, b)]
    return Difference(
        int(in_b.sum()),
        int((~in_b).sum()),
        int((~in_a).sum()),
        {name: (splits[0][name], splits[1][name]) for name in sorted({*splits[0], *splits[1]})},
        (sum(changed), len(changed)),
        sorted(set(a.columns) - set(b.columns)),
        sorted(set(b.columns) - set(a.columns)),
        [c[0].text for c in a.captions(rows_a[~in_b][:examples])],
        [c[0].text for c in b.captions(rows_b[~in_a][:examples])],
    )


def _keys(data: Dataset) -> np.ndarray:
    return np.ascontiguousarray(data.column("uid")).view("V16").view(np.dtype("S16"))
