"""Scores that somebody else computed: columns of a Parquet file, by the samples' ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from orchestrator.curation.operator import ColumnType, Judge, RowOperator, Tools, Verdict
from orchestrator.recipe.schema import Execution

if TYPE_CHECKING:
    from orchestrator.curation.block import Block


class Join(RowOperator):
    """Adds columns of numbers from a Parquet file, for `threshold`, `keep_top` and others to go by."""

    file: Execution[Annotated[str, Field(pattern=r"\.parquet$")]]
    """The file, on this machine's disk or s3://... It is brought into the store and known by its content."""
    take: list[str] = Field(min_length=1)
    """Columns of numbers to take over, as float32."""
    by: Literal["uid", "source_uid", "key"] = "source_uid"
    """What samples are known by in the file: the uid that they have here, their own uid from json (DataComp), or
    their key in the shard. The file's column has that name, or is called `uid` or `key`."""
    missing: Literal["keep", "drop"] = "keep"
    """What is done with samples that the file does not have: they stay, without values, or go."""

    def files(self) -> tuple[str, ...]:
        return (self.file,)

    def adds(self) -> Mapping[str, ColumnType]:
        return dict.fromkeys(self.take, "float32")

    def open(self, tools: Tools) -> Judge:
        """With the file's rows, sorted by id."""
        import numpy as np

        from orchestrator.curation.outside import Lookup, ids

        lookup = Lookup(tools.file(self.file), self.by, self.take)

        def judge(block: Block) -> Verdict:
            there, values = lookup.find(ids(block, self.by))
            columns = {name: np.full(len(block), np.nan, np.float32) for name in self.take}
            for name, found in values.items():
                columns[name][there] = found.astype(np.float32)
            reasons = np.where(there | (self.missing == "keep"), "", "not in the file").astype(object)
            return Verdict(reasons, columns, counts={"not in the file": float((~there).sum())})

        return judge
