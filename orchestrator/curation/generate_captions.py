"""Generated captions: a captioner writes one for each image, in a slot beside the original (TL;DR, section 3.3).

Nothing is merged here: the original stays as it is, and a training's caption policy says what is seen of both
(`captions: {join: [original, generated]}`). Alone, generated captions make a contrastive training collapse: they are
too much alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from orchestrator.curation.operator import ColumnType, Judge, RowOperator, Tools, Verdict
from orchestrator.recipe.schema import Execution, Model, Ref

if TYPE_CHECKING:
    from orchestrator.curation.block import Block

Captioner = Ref[Model, "generate"]
Count = Annotated[int, Field(ge=1)]


class GenerateCaptions(RowOperator):
    """Adds a generated caption to each sample that has none; leaves out images that cannot be decoded."""

    columns: ClassVar[tuple[str, ...]] = ("captions",)

    model: Captioner
    """The captioner."""
    beams: Count = 1
    """Beginnings kept while it writes; 1 takes the likeliest token each time. BLIP: 3."""
    min_tokens: Count = 1
    """Least length of a caption. BLIP: 5."""
    max_tokens: Count = 30
    """Greatest length of a caption. BLIP: 20."""
    anew: bool = False
    """Write one for each sample, in place of generated captions that are there."""
    batch: Execution[Count] = 64
    """Images the captioner sees at once."""

    def adds(self) -> Mapping[str, ColumnType]:
        """All captions of each sample."""
        return {"captions": "captions"}

    def open(self, tools: Tools) -> Judge:
        """Writes, a batch at a time."""
        import numpy as np
        import torch

        from orchestrator.curation.pictures import pictures
        from orchestrator.data.captions import UNKNOWN
        from orchestrator.data.dataset import Caption

        model, preprocess, tokenizer = tools.model("model")
        limits = {"beams": self.beams, "min_tokens": self.min_tokens, "max_tokens": self.max_tokens}

        @torch.inference_mode()
        def judge(block: Block) -> Verdict:
            captions = list(block.captions)
            if self.anew:
                captions = [tuple(one for one in those if one.slot != "generated") for those in captions]
            without = [n for n, those in enumerate(captions) if all(one.slot != "generated" for one in those)]
            reasons, written = np.full(len(block), "", object), 0
            for some in pictures(block, np.array(without, np.int64), preprocess, self.batch, tools.device):
                for place, reason in some.bad.items():
                    reasons[place] = reason
                if not some.places:
                    continue
                for place, ids in zip(some.places, model.generate(some.pixels, **limits).tolist()):
                    if text := tokenizer.spell(ids):
                        captions[place], written = (*captions[place], Caption("generated", UNKNOWN, text)), written + 1
            return Verdict(reasons, {"captions": captions}, counts={"captions written": written})

        return judge
