"""Which caption is the primary one: what operators look at, and what a training sees that asks for nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from orchestrator.curation.operator import ColumnType, RowOperator, Verdict
from orchestrator.data.captions import UNKNOWN, Slot

if TYPE_CHECKING:
    from orchestrator.curation.block import Block
    from orchestrator.data.dataset import Caption


class ChooseCaption(RowOperator):
    """Puts a caption of a wanted kind, in a wanted language, first; the others stay behind it in their order."""

    columns: ClassVar[tuple[str, ...]] = ("captions",)

    slots: Annotated[list[Slot], Field(min_length=1)] = ["original"]
    """Kinds of captions, the most wanted first."""
    lang: str | None = None
    """Language code; captions whose language nobody stated count too. Default: any."""
    required: bool = False
    """Leave out samples that have no such caption; else they stay as they are."""
    only: bool = False
    """Remove the others."""

    def adds(self) -> Mapping[str, ColumnType]:
        """All captions of each sample, the chosen one first."""
        return {"captions": "captions"}

    def judge(self, block: Block) -> Verdict:
        """The order of each sample's captions."""
        import numpy as np

        found, reasons, moved = [], np.full(len(block), "", object), 0
        for place, captions in enumerate(block.captions):
            chosen = self._best(captions)
            if chosen is None:
                reasons[place] = "no such caption" if self.required else ""
                found.append(captions)
                continue
            moved += chosen > 0
            rest = () if self.only else captions[:chosen] + captions[chosen + 1 :]
            found.append((captions[chosen], *rest))
        return Verdict(reasons, {"captions": found}, counts={"another caption is first": moved})

    def _best(self, captions: tuple[Caption, ...]) -> int | None:
        """Place of the first caption of the most wanted kind that is there."""
        for slot in self.slots:
            for place, caption in enumerate(captions):
                if caption.slot == slot and (self.lang is None or caption.lang in (self.lang, UNKNOWN)):
                    return place
        return None
