"""A choice that somebody else made: DataComp's uid files. An id that stands n times repeats its sample n times."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from orchestrator.curation.operator import Judge, RowOperator, Tools, Verdict
from orchestrator.errors import DataError
from orchestrator.recipe.schema import Execution

if TYPE_CHECKING:
    from orchestrator.curation.block import Block


class UidList(RowOperator):
    """Keeps the samples whose ids are in a DataComp uid file, as often as they stand there."""

    file: Execution[Annotated[str, Field(pattern=r"\.npy$")]]
    """A NumPy file of dtype "u8,u8": high and low 64 bits of each id. It is brought into the store and known by its
    content."""
    by: Literal["uid", "source_uid"] = "source_uid"
    """Whether the ids are those that samples have here, or their own from json (DataComp's)."""

    def files(self) -> tuple[str, ...]:
        return (self.file,)

    def reads(self) -> tuple[str, ...]:
        return () if self.by == "uid" else ("source_uid",)

    def open(self, tools: Tools) -> Judge:
        """With the ids, sorted; 16 bytes each."""
        import numpy as np

        from orchestrator.curation.outside import ids
        from orchestrator.data.dataset import IDENTITY

        read = np.load(tools.file(self.file), mmap_mode="r")
        if read.dtype != np.dtype("u8,u8") or read.ndim != 1:
            raise DataError(f"{self.file} is no uid file: {read.dtype}, {read.ndim} dimensions", 'write dtype "u8,u8"')
        spelt = np.empty(len(read), IDENTITY)
        spelt["high"], spelt["low"] = read["f0"], read["f1"]
        wanted, times = np.unique(spelt.view("S16"), return_counts=True)

        def judge(block: Block) -> Verdict:
            known = ids(block, self.by)
            bytes_of = [bytes.fromhex(name) if _is_uid(name) else b"" for name in known.tolist()]
            asked = np.array(bytes_of, "S16")
            places = np.minimum(np.searchsorted(wanted, asked), max(0, len(wanted) - 1))
            there = (wanted[places] == asked) & (asked != b"") if len(wanted) else np.zeros(len(block), bool)
            repeats = np.where(there, times[places] if len(wanted) else 1, 1)
            reasons = np.where(there, "", "not in the file").astype(object)
            return Verdict(reasons, repeats=repeats if repeats.max(initial=1) > 1 else None)

        return judge


def _is_uid(name: str) -> bool:
    return len(name) == 32 and set(name) <= set("0123456789abcdef")
