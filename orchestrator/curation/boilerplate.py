"""Captions that say nothing of their image: the same text under many images, file names, numbers.

What is boilerplate in a pool is seen from the pool: a caption under dozens of different images ("image", "untitled",
"photo by ...") was written for none of them. Case, spaces and digits are passed over when captions are compared, so
that "Page 12" and "page 7" are one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, field_validator

from orchestrator.curation.operator import Arrays, GroupedOperator, Tools, Verdict

if TYPE_CHECKING:
    from orchestrator.curation.block import Block

FILE_NAMES = r"(img|dsc|dscn|dscf|pict|image|photo|scan|screenshot|untitled)?[\W\d_]*(\.(jpe?g|png|gif|webp|svg))?"
_DIGITS, _SPACES = re.compile(r"\d+"), re.compile(r"\s+")


class Boilerplate(GroupedOperator):
    """Drops samples whose caption stands under too many different images, or is no more than a file's name."""

    columns: ClassVar[tuple[str, ...]] = ("caption", "image_digest")

    most: Annotated[int, Field(ge=1)] = 20
    """Different images that may share a caption."""
    keep: Annotated[int, Field(ge=0)] = 0
    """Of those that share one too often, how many stay all the same: the first in the order of ids."""
    patterns: list[str] = [FILE_NAMES]
    """Regular expressions; a caption that one of them matches whole, in any case, is dropped."""

    @field_validator("patterns")
    @classmethod
    def _compile(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return patterns

    def keys(self, tools: Tools) -> Callable[[Block], Arrays]:
        """A digest of the caption, the image's, and whether a pattern matches."""
        import numpy as np

        matches = [re.compile(pattern, re.IGNORECASE).fullmatch for pattern in self.patterns]

        def noted(block: Block) -> Arrays:
            captions = block.column("caption").tolist()
            spelt = b"".join(hashlib.sha256(plain(caption).encode()).digest()[:8] for caption in captions)
            matched = [any(match(caption.strip()) for match in matches) for caption in captions]
            image = np.ascontiguousarray(block.column("image_digest")).view("<u8").reshape(len(block), 2)[:, 0]
            return {"group": np.frombuffer(spelt, "<u8"), "image": image, "matched": np.array(matched, bool)}

        return noted

    def compare(self, bucket: Arrays, tools: Tools) -> Verdict:
        """Those whose caption has too many images, or a pattern."""
        import numpy as np

        pairs = np.unique(np.stack([bucket["group"], bucket["image"]], axis=1), axis=0)
        groups, images = np.unique(pairs[:, 0], return_counts=True)
        place = np.searchsorted(groups, bucket["group"])
        by = np.argsort(place, kind="stable")
        first = np.searchsorted(place[by], np.arange(len(groups)))
        rank = np.empty(len(place), int)
        rank[by] = np.arange(len(place)) - first[place[by]]
        often = (images[place] > self.most) & (rank >= self.keep)
        reasons = np.where(often, f"caption of more than {self.most} images", "").astype(object)
        reasons[bucket["matched"]] = "caption is like a file's name"
        return Verdict(reasons, counts={"captions of too many images": float((images > self.most).sum())})


def plain(caption: str) -> str:
    """A caption as it is compared: lower case, single spaces, every number a 0."""
    return _SPACES.sub(" ", _DIGITS.sub("0", caption.casefold())).strip()
