"""Options of the codebook captioner. Image tower and decoder take their shapes from `model:` (its text tower, with
cross-attention); the longest caption is its `context_length`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from orchestrator.methods.config import MethodConfig
from orchestrator.models import catalog
from orchestrator.models.config import ModelSpec

NotNegative = Annotated[float, Field(ge=0)]
UNFIT = {
    "vision_cfg": ("timm_model_name", "attentional_pool", "block_type", "qk_norm", "scale_heads", "scale_attn"),
    "text_cfg": ("no_causal_mask", "embed_cls", "block_type", "qk_norm", "scale_heads", "scale_attn"),
}
"""Settings of an open_clip configuration that leave no tokens to quantise, or no causal text tower of plain blocks."""
SMOKE_CODES, SMOKE_VOCABULARY = 64, 1024


class Captioner(MethodConfig):
    """Captioning through a codebook (TL;DR): images become lists of codes, and captions are written from these."""

    runner: ClassVar[str] = "orchestrator.methods.captioner.method:CaptionerMethod"

    codes: Annotated[int, Field(ge=2, le=2**16)] = 3000
    """Entries of the codebook."""
    pieces: Annotated[int, Field(ge=1)] = 1
    """Codes of an image token: it is cut into so many parts, quantised apart by the same codebook."""
    class_token: bool = True
    """Quantise and read the image's class token, too."""
    codebook_init: Literal["keywords", "uniform", "xavier"] = "keywords"
    """What codes are at first: embeddings of the captions' most frequent keywords and phrases; uniform within 1 /
    codes; Xavier's uniform."""
    beta: NotNegative = 0.25
    """Weight of one of the two parts of the codebook's loss; the other one has weight 1."""
    beta_weighs: Literal["codebook", "tokens"] = "codebook"
    """Which part: `codebook` moves the codes towards the tokens (so TL;DR's code), `tokens` the tokens towards the
    codes (VQ-VAE)."""
    lm_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the captions' cross-entropy."""
    emb_weight: NotNegative = 1.0
    """Weight of the codebook's loss."""
    revive_after: Annotated[int, Field(ge=1)] | None = 1000
    """A code that none of so many samples was given takes the place of a random token of the batch: without it most
    codes are never used, and few images are told apart. `null`: never (TL;DR's code)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a predicted token's target that is spread over all tokens (BLIP: 0.1)."""
    vocabulary: Annotated[int, Field(ge=8)] | None = None
    """Tokens that the decoder knows: the most frequent ones of the captions; all others are one, which is never
    written. A small captioner trains several times faster with a few thousand. Default: the tokenizer's 49,408."""

    def capabilities(self, model: ModelSpec) -> frozenset[str]:
        """Codes, captions and their likelihood; images, but no texts, have a feature."""
        return frozenset({"encode_image", "codes", "generate", "likelihood"})

    def check(self, model: ModelSpec) -> None:
        """It needs a vision transformer whose width the pieces divide, and a causal text tower."""
        for tower, unfit in UNFIT.items():
            settings: Any = model.open_clip[tower]
            for name in unfit:
                if settings.get(name):
                    raise ValueError(f"method captioner cannot train a model with {tower}.{name}; choose a plain ViT")
        vision: Any = model.open_clip["vision_cfg"]
        if isinstance(vision.get("layers", 12), list):
            raise ValueError(
                "method captioner quantises the tokens of a vision transformer; this image tower is a ResNet"
            )
        width = vision.get("width", 768)
        if width % self.pieces:
            raise ValueError(f"method captioner cannot cut tokens of {width} channels into {self.pieces} pieces")
        known = catalog.vocab_size(model.open_clip)
        if self.vocabulary is not None and self.vocabulary > known:
            raise ValueError(
                f"method captioner: a vocabulary of {self.vocabulary} is more than the {known} tokens there are"
            )

    def smoke(self) -> Self:
        """A small book, one code a token."""
        vocabulary = min(self.vocabulary or SMOKE_VOCABULARY, SMOKE_VOCABULARY)
        changes = {"codes": min(self.codes, SMOKE_CODES), "pieces": 1, "vocabulary": vocabulary}
        return self.model_copy(update=changes)
