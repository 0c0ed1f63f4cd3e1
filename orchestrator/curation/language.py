"""Captions in other languages than those wanted, as the data say it, or as a classifier guesses.

A guess about a caption of a few words is often wrong (py3langid is right in 53% of short English ones), so it counts
only from a stated probability on; below it the caption is taken to be in any language.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from orchestrator.curation.operator import ColumnType, Judge, RowOperator, Tools, Verdict

if TYPE_CHECKING:
    from orchestrator.curation.block import Block


class Language(RowOperator):
    """Keeps samples whose primary caption is in certain languages; adds the column `language`."""

    columns: ClassVar[tuple[str, ...]] = ("caption",)

    keep: Annotated[list[str], Field(min_length=1)] = ["en"]
    """Language codes (ISO 639-1) that stay; `und` are captions of which nobody says the language."""
    by: Literal["data", "guess"] = "guess"
    """What the samples' json says, or what py3langid guesses (139 languages)."""
    probability: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Of a guess: how sure it must be for a sample to be dropped."""

    def adds(self) -> Mapping[str, ColumnType]:
        return {"language": "string"}

    def open(self, tools: Tools) -> Judge:
        """With the classifier, if it is wanted."""
        import numpy as np

        guess = classifier() if self.by == "guess" else None

        def judge(block: Block) -> Verdict:
            languages = np.array([captions[0].lang for captions in block.captions], object)
            sure = np.ones(len(block), bool)
            if guess is not None:
                found = [guess(text) for text in block.column("caption").tolist()]
                languages = np.array([language for language, _ in found], object)
                sure = np.array([probability >= self.probability for _, probability in found], bool)
            out = sure & ~np.isin(languages.astype(str), self.keep)
            reasons = np.full(len(block), "", object)
            reasons[out] = [f"in {language}" for language in languages[out]]
            return Verdict(reasons, {"language": languages}, counts={"unsure": float((~sure).sum())})

        return judge


def classifier() -> Callable[[str], tuple[str, float]]:
    """From a text to (language code, probability)."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True).classify
