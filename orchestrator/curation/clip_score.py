"""CLIP score: how alike a model finds image and primary caption (LAION, DataComp; DFN with a model of one's own).

Scores of different models are not comparable. `threshold` keeps those above a limit, `keep_top` the best share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field, model_validator

from orchestrator.curation.operator import ColumnType, Judge, RowOperator, Tools, Verdict
from orchestrator.recipe.schema import Embeddings, Execution, Model, Ref

if TYPE_CHECKING:
    from orchestrator.curation.block import Block

Scorer = Ref[Model, "encode_image", "encode_text", "score"]


class ClipScore(RowOperator):
    """Notes the similarity of image and caption (column `clip_score`); leaves out images that cannot be decoded."""

    columns: ClassVar[tuple[str, ...]] = ("caption",)

    model: Scorer | None = None
    """The model that compares them."""
    features: Ref[Embeddings] | None = None
    """Instead: embeddings of images and captions, of the evaluation view (`views: 0`), whose cosine is the score."""
    batch: Execution[Annotated[int, Field(ge=1)]] = 64
    """Pairs the model sees at once."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.model is None) == (self.features is None):
            raise ValueError("clip_score needs `model` or `features`, one of them")
        return self

    def adds(self) -> Mapping[str, ColumnType]:
        """The score."""
        return {"clip_score": "float32"}

    def open(self, tools: Tools) -> Judge:
        """Scores by the model, or by stored features."""
        return self._by_model(tools) if self.model is not None else self._by_features(tools)

    def _by_model(self, tools: Tools) -> Judge:
        from orchestrator.curation.pictures import scored

        model, preprocess, tokenizer = tools.model("model")

        def judge(block: Block) -> Verdict:
            reasons, scores = scored(
                block,
                preprocess,
                tokenizer,
                self.batch,
                tools.device,
                lambda images, texts: model.score(model.encode_image(images), model.encode_text(texts)).diagonal(),
            )
            return Verdict(reasons, {"clip_score": scores})

        return judge

    def _by_features(self, tools: Tools) -> Judge:
        import numpy as np

        from orchestrator.curation.features import StoredFeatures

        sides = [StoredFeatures(tools.embeddings("features"), side) for side in ("image", "text")]

        def judge(block: Block) -> Verdict:
            scores = np.full(len(block), np.nan, np.float32)
            (with_image, images), (with_text, texts) = (side.read(block.uid) for side in sides)
            both = with_image & with_text
            images, texts = images[both[with_image]], texts[both[with_text]]
            lengths = np.linalg.norm(images, axis=1) * np.linalg.norm(texts, axis=1)
            scores[both] = np.einsum("nd,nd->n", images, texts) / lengths
            return Verdict(np.where(both, "", "no features").astype(object), {"clip_score": scores})

        return judge
