"""The `Model` interface: what evaluation, distillation, curation and users need of a trained model, and nothing else.

A Model is structure (JSON), weights (safetensors), preprocessing and tokenizer. Capabilities are declared, so that a
stage's needs are checked when the recipe is compiled; a sentence encoder, say, declares no `encode_image`. `score` is
a dot product only in the usual case: FILIP, LexVLA and FLAME differ, and evaluation must call it rather than multiply
features itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

CAPABILITIES = (
    "encode_image",
    "encode_text",
    "score",
    "patches",
    "codes",
    "generate",
    "match",
    "likelihood",
    "words",
)


class Model(nn.Module):
    """Base of all models. A method whose capability is not declared may not be called.

    Legend: B images, M texts, L tokens, d features.
    """

    capabilities: ClassVar[frozenset[str]] = frozenset({"encode_image", "encode_text", "score"})

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> Model:
        """The model that `structure()["config"]` describes, its weights yet to be loaded."""
        raise NotImplementedError

    def structure(self) -> dict[str, Any]:
        """JSON that, with the weights, rebuilds this model anywhere: `{"class": "module:Class", "config": {...}}`."""
        raise NotImplementedError

    def kept_whole(self) -> Sequence[nn.Parameter]:
        """Parameters that a sharded training does not cut up, since its method changes them itself between steps."""
        return ()

    def encode_image(self, images: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] to L2-normalised features [B, d]."""
        raise NotImplementedError

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Token ids [M, L] (padding may be cut to the longest) to L2-normalised features [M, d]."""
        raise NotImplementedError

    def score(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Similarities [B, M], larger is closer, without the logit scale."""
        return image_features @ text_features.T

    def patches(self, images: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] to features of an image's parts [B, L, d], row by row."""
        raise NotImplementedError

    def codes(self, images: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] to the numbers that describe an image, [B, n] int64, below 2^16.

        An image's do not depend on the batch it came in.
        """
        raise NotImplementedError

    def generate(self, images: Tensor, *, beams: int = 1, min_tokens: int = 1, max_tokens: int = 30) -> Tensor:
        """Normalised pixels [B, 3, H, W] to a caption each: token ids [B, L] with start and end, zero-padded, without
        chance.

        Args:
            beams: beginnings that are kept while it writes; 1 takes the likeliest token each time.
            min_tokens, max_tokens: length of a caption without start and end.
        """
        raise NotImplementedError

    def match(self, images: Tensor, tokens: Tensor) -> Tensor:
        """The probability [B] that each text [B, L] belongs to its image [B, 3, H, W], by a trained judge of pairs."""
        raise NotImplementedError

    def likelihood(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Mean log-likelihood, a token, of each text [B, L] as a caption of its image [B, 3, H, W]: [B], at most 0."""
        raise NotImplementedError
