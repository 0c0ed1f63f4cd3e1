"""The `Model` interface: what evaluation, distillation, curation and users need of a trained model, and nothing else.

A Model is structure (JSON), weights (safetensors), preprocessing and tokenizer. Capabilities are declared, so that a
stage's needs are checked when the recipe is compiled; a sentence encoder, say, declares no `encode_image`. `score` is
a dot product only in the usual case: FILIP, LexVLA and FLAME differ, and evaluation must call it rather than multiply
features itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

CAPABILITIES = ("encode_image", "encode_text", "score", "patches", "codes", "generate", "match", "words")


class Model(nn.Module):
    """Base of all models. Legend: B images, M texts, L tokens, d features."""

    capabilities: ClassVar[frozenset[str]] = frozenset({"encode_image", "encode_text", "score"})

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> Model:
        """The model that `structure()["config"]` describes, its weights yet to be loaded."""
        raise NotImplementedError

    def structure(self) -> dict[str, Any]:
        """JSON that, with the weights, rebuilds this model anywhere: `{"class": "module:Class", "config": {...}}`."""
        raise NotImplementedError

    def encode_image(self, images: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] to L2-normalised features [B, d]."""
        raise NotImplementedError

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Token ids [M, L] (padding may be cut to the longest) to L2-normalised features [M, d]."""
        raise NotImplementedError

    def score(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Similarities [B, M], larger is closer, without the logit scale."""
        return image_features @ text_features.T
