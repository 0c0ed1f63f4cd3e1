"""Captions rewritten by rules, the same for every caption of the chosen kinds.

`blip` is what BLIP's loader does to captions (`pre_caption`), and so what TL;DR's trainings saw: lower case, some
punctuation to blanks, the first 30 words. A caption that is joined behind a long one is then cut off: there it is
better to give each kind a `budget` in the training's caption policy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from orchestrator.curation.operator import ColumnType, RowOperator, Verdict
from orchestrator.data.captions import Slot

if TYPE_CHECKING:
    from orchestrator.curation.block import Block
    from orchestrator.data.dataset import Caption

BLIP_BLANKS = str.maketrans(dict.fromkeys('.!"()*#:;~', " "))
BLIP_WORDS = 30


class RewriteCaptions(RowOperator):
    """Rewrites captions; what comes out empty is no caption any more, and a sample without any is left out."""

    columns: ClassVar[tuple[str, ...]] = ("captions",)

    style: Literal["blip"] | None = None
    """`blip`: lower case, `. ! " ( ) * # : ; ~` to blanks, 30 words unless `max_words` says otherwise."""
    remove: list[str] = []
    """Regular expressions whose matches are removed, before anything else: `["^File:", "\\\\.jpe?g$"]`."""
    lower: bool = False
    """Lower case."""
    max_words: Annotated[int, Field(ge=1)] | None = None
    """Words that stay of a caption, from its beginning."""
    slots: Annotated[list[Slot], Field(min_length=1)] | None = None
    """Kinds of captions that are rewritten. Default: all."""

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        for pattern in self.remove:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"rewrite_captions: '{pattern}' is no regular expression: {error}") from None
        if self.style is None and not (self.remove or self.lower or self.max_words):
            raise ValueError("rewrite_captions needs a rule: style, remove, lower or max_words")
        return self

    def adds(self) -> Mapping[str, ColumnType]:
        """All captions of each sample."""
        return {"captions": "captions"}

    def judge(self, block: Block) -> Verdict:
        """Captions as the rules have them."""
        import numpy as np

        found, changed = [], 0
        for captions in block.captions:
            found.append(tuple(caption for caption in map(self._rewritten, captions) if caption.text))
            changed += found[-1] != captions
        reasons = np.array(["" if captions else "no caption left" for captions in found], object)
        return Verdict(reasons, {"captions": found}, counts={"samples with captions changed": changed})

    def rewrite(self, text: str) -> str:
        """A text by the rules."""
        for pattern in self.remove:
            text = re.sub(pattern, "", text)
        if self.style == "blip":
            return blip(text, self.max_words or BLIP_WORDS)
        text = text.lower() if self.lower else text
        return text.strip() if self.max_words is None else " ".join(text.split()[: self.max_words])

    def _rewritten(self, caption: Caption) -> Caption:
        from dataclasses import replace

        if self.slots is not None and caption.slot not in self.slots:
            return caption
        return replace(caption, text=self.rewrite(caption.text))


def blip(text: str, max_words: int = BLIP_WORDS) -> str:
    """A caption as BLIP's loader prepares it: words are what stands between single blanks."""
    text = re.sub(r"\s{2,}", " ", text.lower().translate(BLIP_BLANKS)).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])
