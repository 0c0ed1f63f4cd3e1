"""Huge images: decompression bombs, maps, posters. Those above data/pictures.py's limit never become samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from orchestrator.curation.operator import RowOperator, Verdict
from orchestrator.curation.sides import sides

if TYPE_CHECKING:
    from orchestrator.curation.block import Block


class MaxPixels(RowOperator):
    """Drops images that have too many pixels to be worth decoding."""

    columns: ClassVar[tuple[str, ...]] = ("width", "height")

    pixels: Annotated[int, Field(ge=1)] = 20_000_000
    """Greatest number of pixels, width times height."""

    def judge(self, block: Block) -> Verdict:
        """Those above the limit."""
        width, height, reasons = sides(block, "stored")
        reasons[width * height > self.pixels] = f"over {self.pixels:,} pixels"
        return Verdict(reasons)
