"""Exact duplicates: of samples with the same image bytes (and the same caption), the one with the lowest uid stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from orchestrator.curation.operator import OperatorConfig

if TYPE_CHECKING:
    import numpy as np


class Dedup(OperatorConfig):
    """Drops exact duplicates, whatever split they are in."""

    columns: ClassVar[tuple[str, ...]] = ("uid", "image_digest", "caption")

    key: Literal["image", "pair"] = "pair"
    """What must be equal, byte by byte: the image alone, or the image and the primary caption."""

    def judge(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """All but the first of equal samples, in uid order."""
        import numpy as np

        reasons = np.full(len(columns["uid"]), "", object)
        seen: set[tuple[object, ...]] = set()
        images, captions = columns["image_digest"].tolist(), columns["caption"].tolist()
        for row in np.argsort(columns["uid"], order=("high", "low")).tolist():
            key = (images[row],) if self.key == "image" else (images[row], captions[row])
            if key in seen:
                reasons[row] = f"dedup: same {self.key} as another sample"
            seen.add(key)
        return reasons
