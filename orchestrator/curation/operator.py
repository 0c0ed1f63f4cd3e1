"""The contract of a curation operator: samples in, for each a reason to leave it out or none, and new columns.

A data set is curated block by block (the rows of a shard), anywhere and in any order, and no operator holds more of it
than a block or a bucket. What it decides may depend on the set of samples, never on their order, nor on how they lie
in shards. Three shapes are enough:

    RowOperator       looks at one sample at a time: sizes, captions, scores of a model
    FittedOperator    looks at summaries of all samples first, then at one at a time: a share of the best, clusters
    GroupedOperator   compares samples of a group, wherever they lie: duplicates, a choice within each cluster

An operator is one file: its options (fields), what it reads and adds, and one of these. Nothing heavy is imported
before it works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from orchestrator.recipe.schema import Config

if TYPE_CHECKING:
    import numpy as np
    import torch

    from orchestrator.curation.block import Block
    from orchestrator.data.dataset import Dataset
    from orchestrator.data.embeddings import StoredViews
    from orchestrator.data.preprocess import Preprocess, Tokenizer
    from orchestrator.models.interface import Model

Arrays = Mapping[str, "np.ndarray"]
"""Named arrays: what is seen of a block, what is fitted, what is known of a bucket's samples."""
ColumnType = Literal["bool", "uint8", "uint16", "uint32", "uint64", "float32", "string", "list<uint32>", "captions"]


class Tools(Protocol):
    """What an operator may open beside the samples: each once in a process. Names are those of its own fields."""

    @property
    def device(self) -> torch.device:
        """Where models are."""

    def model(self, name: str) -> tuple[Model, Preprocess, Tokenizer]:
        """The model of a field `Ref[Model]`, in eval mode on the device."""

    def embeddings(self, name: str) -> StoredViews:
        """The Embeddings of a field `Ref[Embeddings]`."""

    def dataset(self, name: str) -> Dataset:
        """The data set of a field `Ref[Dataset]`."""

    def file(self, source: str) -> Path:
        """An outside file of `OperatorConfig.files`, on this machine's disk."""


@dataclass(frozen=True)
class Verdict:
    """What an operator says of n samples.

    Attributes:
        reasons: [n] objects: why each is left out, "" where it stays; None: all stay.
        columns: new columns by name, [n] each; values of samples that are left out are not kept. `captions` are tuples
            of Caption, in place of those a sample had.
        repeats: [n]: how often each sample that stays is there from now on; None: once.
        counts: figures for the report, added up over blocks.
    """

    reasons: np.ndarray | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    repeats: np.ndarray | None = None
    counts: Mapping[str, float] = field(default_factory=dict)


Judge = Callable[["Block"], Verdict]


class OperatorConfig(Config):
    """Base of all operators: subclass one of the three shapes. Fields are the recipe's options."""

    columns: ClassVar[tuple[str, ...]] = ()
    """Columns it needs (data/dataset.py, `Dataset.column`, or made by an operator before it)."""

    def reads(self) -> tuple[str, ...]:
        """Columns that these options need. Default: the class's `columns`."""
        return self.columns

    def adds(self) -> Mapping[str, ColumnType]:
        """Columns it makes, and their types."""
        return {}

    def asks_of(self, field: str, can: frozenset[str]) -> frozenset[str]:
        """What the model at a field must be able to do beside what its type names, if it `can` do these things."""
        return frozenset()

    def files(self) -> tuple[str, ...]:
        """Outside files that it reads (a path, or s3://...): known by content. Their fields are `Execution`."""
        return ()


class RowOperator(OperatorConfig):
    """Judges each sample by itself. Overrides `judge`, or `open` where something is to be made ready first."""

    def judge(self, block: Block) -> Verdict:
        """What it says of a block's samples."""
        raise NotImplementedError

    def open(self, tools: Tools) -> Judge:
        """Called once in each process that does the work."""
        return self.judge


class FittedOperator(OperatorConfig):
    """Sees all samples, fits something to them, and then judges each by that."""

    def observe(self, tools: Tools) -> Callable[[Block], Arrays]:
        """Called once in each process: gives what is to be known of a block, bounded (a sample, counts)."""
        raise NotImplementedError

    def fit(self, seen: Iterator[Arrays], tools: Tools) -> Arrays:
        """From what was seen of all blocks, in their order, to what is needed to judge; kept beside the result.

        Must not depend on how samples lie in blocks: sort by uid, or add up what may be added up exactly.
        """
        raise NotImplementedError

    def open(self, fitted: Arrays, tools: Tools) -> Judge:
        """Called once in each process that judges."""
        raise NotImplementedError

    def facts(self, fitted: Arrays) -> Mapping[str, float]:
        """Figures of what was fitted, for the report, beside the counts of verdicts."""
        return {}


class GroupedOperator(OperatorConfig):
    """Compares the samples of each group; groups are brought together in buckets of some 100,000 samples."""

    def keys(self, tools: Tools) -> Callable[[Block], Arrays]:
        """Called once in each process: gives `group` [n] uint64 and whatever else is to be known of a block's samples,
        [n, ...] each. Samples whose groups are equal meet; `uid` (IDENTITY) is added by itself. A sample that is to
        meet several groups gives them all, [n, groups], and goes if it has a reason in any.
        """
        raise NotImplementedError

    def compare(self, bucket: Arrays, tools: Tools) -> Verdict:
        """What it says of a bucket's samples, which are in uid order; all members of a group are there."""
        raise NotImplementedError
