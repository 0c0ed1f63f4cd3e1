"""Captions that are too short or too long, in words (parts between white space) and characters.

DataComp's basic filter wants more than two words and more than five characters: `{min_words: 3, min_characters: 6}`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field, model_validator

from orchestrator.curation.operator import RowOperator, Verdict

if TYPE_CHECKING:
    from orchestrator.curation.block import Block

Limit = Annotated[int, Field(ge=1)] | None


class TextLength(RowOperator):
    """Drops samples whose primary caption is too short or too long."""

    columns: ClassVar[tuple[str, ...]] = ("caption",)

    min_words: Limit = None
    """Least number of words."""
    max_words: Limit = None
    """Greatest number of words."""
    min_characters: Limit = None
    """Least number of characters."""
    max_characters: Limit = None
    """Greatest number of characters."""

    @model_validator(mode="after")
    def _limited(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("text_length needs at least one of min_words, max_words, min_characters, max_characters")
        return self

    def judge(self, block: Block) -> Verdict:
        """Those out of the limits."""
        import numpy as np

        captions = block.column("caption").tolist()
        words = np.array([len(caption.split()) for caption in captions], int)
        characters = np.array([len(caption) for caption in captions], int)
        reasons = np.full(len(captions), "", object)
        for what, lengths, least, most in (
            ("words", words, self.min_words, self.max_words),
            ("characters", characters, self.min_characters, self.max_characters),
        ):
            if least is not None:
                reasons[lengths < least] = f"fewer than {least} {what}"
            if most is not None:
                reasons[lengths > most] = f"more than {most} {what}"
        return Verdict(reasons)
