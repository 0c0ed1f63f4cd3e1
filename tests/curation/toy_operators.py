"""Operators of each shape, whose results can be said in a line, for tests of how stages run operators."""

from __future__ import annotations

from typing import Any

import numpy as np

from orchestrator.curation.block import Block
from orchestrator.curation.operator import FittedOperator, GroupedOperator, RowOperator, Tools, Verdict
from orchestrator.data.dataset import Caption
from orchestrator.recipe.schema import Table

TABLE = Table(
    "operator", {name: f"toy_operators:{name}" for name in ("Shout", "AboveMean", "OneOfEach", "Twice", "Fail")}
)


class Shout(RowOperator):
    """Adds a caption in capitals, and its length."""

    def adds(self):
        return {"captions": "captions", "length": "uint16"}

    def judge(self, block: Block) -> Verdict:
        captions = [(*c, Caption("generated", "en", c[0].text.upper())) for c in block.captions]
        lengths = np.array([len(c[0].text) for c in captions], np.uint16)
        return Verdict(columns={"captions": captions, "length": lengths}, counts={"letters": float(lengths.sum())})


class AboveMean(FittedOperator):
    """Keeps what is at least the mean of a column."""

    column: str

    def reads(self):
        return (self.column,)

    def observe(self, tools: Tools):
        return lambda block: {"sum": np.array([block.column(self.column).sum(dtype=np.int64), len(block)])}

    def fit(self, seen, tools: Tools):
        return {"total": np.sum([each["sum"] for each in seen], axis=0)}

    def open(self, fitted: Any, tools: Tools):
        total, count = fitted["total"]

        def judge(block: Block) -> Verdict:
            return Verdict(np.where(block.column(self.column) * count >= total, "", "below the mean").astype(object))

        return judge


class OneOfEach(GroupedOperator):
    """Keeps the lowest uid of each value of a column, and numbers the samples of a group."""

    column: str

    def adds(self):
        return {"place": "uint32"}

    def keys(self, tools: Tools):
        return lambda block: {"group": block.column(self.column).astype(np.uint64)}

    def compare(self, bucket, tools: Tools) -> Verdict:
        place = np.zeros(len(bucket["group"]), np.uint32)
        for value in np.unique(bucket["group"]):
            here = np.flatnonzero(bucket["group"] == value)
            place[here] = np.arange(len(here))
        return Verdict(np.where(place == 0, "", "another of its group").astype(object), {"place": place})


class Twice(RowOperator):
    """Each sample is there twice from now on."""

    def judge(self, block: Block) -> Verdict:
        return Verdict(repeats=np.full(len(block), 2))


class Fail(RowOperator):
    """Fails at a block that has a certain sample, as long as a file is there."""

    uid: str
    while_there: str

    def judge(self, block: Block) -> Verdict:
        from pathlib import Path

        if self.uid in list(block.data.uids) and Path(self.while_there).exists():
            raise RuntimeError("killed")
        return Verdict()
