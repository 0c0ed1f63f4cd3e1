"""Small images: the shorter side must have a number of pixels (DataComp's basic filter: 200, `of: original`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from orchestrator.curation.operator import RowOperator, Verdict
from orchestrator.curation.sides import Of, columns_of, sides

if TYPE_CHECKING:
    from orchestrator.curation.block import Block


class MinSize(RowOperator):
    """Drops images whose shorter side is too small."""

    columns: ClassVar[tuple[str, ...]] = ("width", "height")

    pixels: Annotated[int, Field(ge=1)]
    """Least number of pixels of the shorter side."""
    of: Of = "stored"
    """The image as it is stored, or as it was before whoever downloaded it made it smaller (json `original_width`)."""

    def reads(self) -> tuple[str, ...]:
        return columns_of(self.of)

    def judge(self, block: Block) -> Verdict:
        """Those below the limit."""
        import numpy as np

        width, height, reasons = sides(block, self.of)
        reasons[np.minimum(width, height) < self.pixels] = f"shorter side under {self.pixels} px"
        return Verdict(reasons)
