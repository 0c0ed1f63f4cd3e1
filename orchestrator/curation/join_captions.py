"""Captions from outside: texts of a Parquet file, by the samples' ids, in a slot beside those that are there.

So generated captions that somebody else published are taken over (TL;DR, released `generate_train_json_w_caption.py`,
joins them by row number and file name). An id that stands in several rows brings several captions, in the file's
order; samples that the file does not have stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from orchestrator.curation.operator import ColumnType, Judge, RowOperator, Tools, Verdict
from orchestrator.data.captions import UNKNOWN, Slot
from orchestrator.recipe.schema import Execution

if TYPE_CHECKING:
    from orchestrator.curation.block import Block


class JoinCaptions(RowOperator):
    """Adds captions from a Parquet file behind those that a sample has."""

    columns: ClassVar[tuple[str, ...]] = ("captions",)

    file: Execution[Annotated[str, Field(pattern=r"\.parquet$")]]
    """The file, on this machine's disk or s3://... It is brought into the store and known by its content."""
    take: str = "caption"
    """Column of the texts."""
    slot: Slot = "generated"
    """What kind of captions they become."""
    lang: str = UNKNOWN
    """Their language code."""
    by: Literal["uid", "source_uid", "key"] = "source_uid"
    """What samples are known by in the file: the uid that they have here, their own uid from json (DataComp), or
    their key in the shard. The file's column has that name, or is called `uid` or `key`."""

    def files(self) -> tuple[str, ...]:
        """The file."""
        return (self.file,)

    def adds(self) -> Mapping[str, ColumnType]:
        """All captions of each sample."""
        return {"captions": "captions"}

    def open(self, tools: Tools) -> Judge:
        """With the file's rows, sorted by id."""
        from orchestrator.curation.outside import Lookup, ids
        from orchestrator.data.dataset import Caption

        lookup = Lookup(tools.file(self.file), self.by, [self.take])

        def judge(block: Block) -> Verdict:
            captions, added = list(block.captions), 0
            for place, text in lookup.all(ids(block, self.by), self.take):
                if text:
                    captions[place], added = (*captions[place], Caption(self.slot, self.lang, str(text))), added + 1
            return Verdict(columns={"captions": captions}, counts={"captions added": added})

        return judge
