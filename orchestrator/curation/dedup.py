"""Exact duplicates: of samples with the same image bytes (and the same caption), the one with the lowest uid stays."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from orchestrator.curation.operator import Arrays, GroupedOperator, Tools, Verdict

if TYPE_CHECKING:
    from orchestrator.curation.block import Block


class Dedup(GroupedOperator):
    """Drops exact duplicates, whatever split they are in."""

    columns: ClassVar[tuple[str, ...]] = ("image_digest", "caption")

    key: Literal["image", "pair"] = "pair"
    """What must be equal, byte by byte: the image alone, or the image and the primary caption."""

    def keys(self, tools: Tools) -> Callable[[Block], Arrays]:
        """128 bits of a digest over what must be equal."""
        import numpy as np

        def digests(block: Block) -> Arrays:
            digest = np.ascontiguousarray(block.column("image_digest")).view(np.uint8).reshape(len(block), 16)
            if self.key == "pair":
                pairs = zip(digest, block.column("caption"))
                spelt = [hashlib.sha256(image.tobytes() + text.encode()).digest()[:16] for image, text in pairs]
                digest = np.frombuffer(b"".join(spelt), np.uint8).reshape(len(block), 16)
            return {"group": np.ascontiguousarray(digest).view("<u8")[:, 0], "digest": digest}

        return digests

    def compare(self, bucket: Arrays, tools: Tools) -> Verdict:
        """All but the first of equal samples, in uid order."""
        import numpy as np

        digest = np.ascontiguousarray(bucket["digest"]).view("S16")[:, 0]
        _, first = np.unique(digest, return_index=True)
        reasons = np.full(len(digest), f"same {self.key} as another sample", object)
        reasons[first] = ""
        return Verdict(reasons)
