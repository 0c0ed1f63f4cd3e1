"""Small images: the shorter side, as stored, must have a number of pixels (DataComp's basic filter: 200)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from orchestrator.curation.operator import RowOperator, Verdict

if TYPE_CHECKING:
    from orchestrator.curation.block import Block


class MinSize(RowOperator):
    """Drops images whose shorter side is too small."""

    columns: ClassVar[tuple[str, ...]] = ("width", "height")

    pixels: Annotated[int, Field(ge=1)]
    """Least number of pixels of the shorter side."""

    def judge(self, block: Block) -> Verdict:
        """Those below the limit."""
        import numpy as np

        small = np.minimum(block.column("width"), block.column("height")) < self.pixels
        return Verdict(np.where(small, f"shorter side under {self.pixels} px", "").astype(object))
