"""Small images: the shorter side, as stored, must have a number of pixels (DataComp's basic filter: 200)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from orchestrator.curation.operator import OperatorConfig

if TYPE_CHECKING:
    import numpy as np


class MinSize(OperatorConfig):
    """Drops images whose shorter side is too small."""

    columns: ClassVar[tuple[str, ...]] = ("width", "height")

    pixels: Annotated[int, Field(ge=1)]
    """Least number of pixels of the shorter side."""

    def judge(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Those below the limit."""
        import numpy as np

        small = np.minimum(columns["width"], columns["height"]) < self.pixels
        return np.where(small, f"min_size: shorter side under {self.pixels} px", "").astype(object)
