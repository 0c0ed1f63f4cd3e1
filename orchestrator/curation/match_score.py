"""Image-text matching: how well a caption fits its image, in the judgement of a model that was trained to tell.

Models such as BLIP declare `match`: the probability that the pair belongs together (TL;DR's `blip_itm.py`: softmax
over two logits). Without one, a captioner's mean log-likelihood of the caption, a token, takes its place; the report
says which of the two it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from orchestrator.curation.operator import ColumnType, Judge, RowOperator, Tools, Verdict
from orchestrator.recipe.schema import Execution, Model, Ref

if TYPE_CHECKING:
    from orchestrator.curation.block import Block

WAYS = ("match", "likelihood")


class MatchScore(RowOperator):
    """Notes how well caption and image fit (column `match_score`); leaves out images that cannot be decoded."""

    columns: ClassVar[tuple[str, ...]] = ("caption",)

    model: Ref[Model]
    """A model that can `match`, or a captioner, which knows the `likelihood` of a caption."""
    batch: Execution[Annotated[int, Field(ge=1)]] = 64
    """Pairs the model sees at once."""

    def asks_of(self, field: str, can: frozenset[str]) -> frozenset[str]:
        """One of the two."""
        return frozenset() if can & set(WAYS) else frozenset(WAYS[:1])

    def adds(self) -> Mapping[str, ColumnType]:
        """The score: a probability, or a log-likelihood."""
        return {"match_score": "float32"}

    def open(self, tools: Tools) -> Judge:
        """Scores by the better way that the model has."""
        from orchestrator.curation.pictures import scored

        model, preprocess, tokenizer = tools.model("model")
        way = next(way for way in WAYS if way in model.capabilities)

        def judge(block: Block) -> Verdict:
            reasons, scores = scored(block, preprocess, tokenizer, self.batch, tools.device, getattr(model, way))
            return Verdict(reasons, {"match_score": scores}, counts={f"scored by {way}": int((reasons == "").sum())})

        return judge
