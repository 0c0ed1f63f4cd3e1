"""Widths and heights of images, as stored or as they were before they were downloaded; some may be unknown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

    from orchestrator.curation.block import Block

Of = Literal["stored", "original"]


def columns_of(of: Of) -> tuple[str, str]:
    """The columns with these sizes."""
    return ("width", "height") if of == "stored" else ("original_width", "original_height")


def sides(block: Block, of: Of) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Width and height [n] float64 in pixels, NaN where unknown, and reasons [n], said already where they are."""
    import numpy as np

    width, height = (block.column(name).astype(np.float64) for name in columns_of(of))
    return width, height, np.where(np.isnan(width + height), "size unknown", "").astype(object)
