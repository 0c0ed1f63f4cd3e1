"""`Dataset`: immutable WebDataset shards, a narrow index, column groups laid over it, and a selection.

Files of a Dataset artifact (all tables in one row order: shard, then offset):

    dataset.json         format, name, counts, shards (name, size), column group -> file, selection file or null, content digest;
                         files of upstream artifacts appear as {"artifact": "<kind>/<fingerprint>", "file": ...}, never copied
    index.parquet        uid (16 bytes), shard, image/text/json offset and size in bytes, image format: fixed width
    captions.parquet     captions: list<struct<slot, lang, text>>, slot in original|generated|keywords|short|long
    source.parquet       key, the sample's own uid from json
    labels.parquet ...   further groups: concept, style, category, width, height, split (train|id|ood|unseen), scores, clusters
    selection.parquet    row numbers kept (uint64), and weight when not 1
    location.json        where the shards are (undeclared: it may differ between machines)

uid = the first 128 bits of SHA-256 over the encoded image bytes, the primary caption, and the count of equal pairs before it.
Curation writes column groups and a selection: keeping 24% copies no image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from orchestrator.store.artifacts import Handle


@dataclass(frozen=True)
class Caption:
    """One text of a sample."""

    slot: str
    lang: str
    text: str


@dataclass(frozen=True)
class Sample:
    """One image-text pair as stored: id, encoded image bytes, its captions (the primary one first)."""

    uid: str
    image: bytes
    captions: tuple[Caption, ...]


class Dataset:
    """An opened Dataset: the selected rows of an index, and the means to read them."""

    name: str

    @classmethod
    def open(cls, handle: Handle) -> Dataset:
        """Open a finished Dataset artifact."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Number of selected samples."""
        raise NotImplementedError

    @property
    def uids(self) -> Sequence[str]:
        """Ids of the selected samples, 32 hex digits, in row order."""
        raise NotImplementedError

    @property
    def columns(self) -> Sequence[str]:
        """Names of all columns of all column groups."""
        raise NotImplementedError

    def column(self, name: str) -> np.ndarray:
        """One column over the selected samples [n]; OrchError naming the columns there are, if it is not one."""
        raise NotImplementedError

    def captions(self, rows: Sequence[int]) -> list[tuple[Caption, ...]]:
        """Captions of selected samples, by position in the selection."""
        raise NotImplementedError

    def where(self, **equal: str) -> Dataset:
        """The samples whose columns have these values; no copy. `where(split="train")`."""
        raise NotImplementedError

    def take(self, rows: Sequence[int]) -> Dataset:
        """The samples at these positions of the selection, in this order."""
        raise NotImplementedError

    def read(self, rows: Sequence[int]) -> list[Sample]:
        """Stored samples by position in the selection; neighbours are read together."""
        raise NotImplementedError
