"""Long, thin images: banners, rules, text lines. Longer over shorter side (DataComp's basic filter: 3.0 at most)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from orchestrator.curation.operator import RowOperator, Verdict
from orchestrator.curation.sides import Of, columns_of, sides

if TYPE_CHECKING:
    from orchestrator.curation.block import Block


class AspectRatio(RowOperator):
    """Drops images that are much longer than wide, or wider than long."""

    columns: ClassVar[tuple[str, ...]] = ("width", "height")

    max: Annotated[float, Field(ge=1)] = 3.0
    """Greatest longer side over shorter side."""
    of: Of = "stored"
    """The image as it is stored, or as it was before whoever downloaded it made it smaller (json `original_width`)."""

    def reads(self) -> tuple[str, ...]:
        return columns_of(self.of)

    def judge(self, block: Block) -> Verdict:
        """Those above the limit."""
        import numpy as np

        width, height, reasons = sides(block, self.of)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.maximum(width, height) / np.minimum(width, height)
        reasons[ratio > self.max] = f"sides over {self.max:g} to 1"
        return Verdict(reasons)
