"""`OpenClipModel`: an open_clip two-tower network behind the `Model` interface.

The text tower accepts tokens cut to any length. With a causal mask a token's state does not depend on what follows it,
and the text feature is read at the end-of-text token, so the padding behind the longest caption of a batch is work for
nothing: the positional embedding and the mask are cut to the tokens' length instead. Where that reasoning does not
hold (no causal mask, pooling over the last position, separate text towers), the tokens are padded to the full length
again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.models.interface import Model


class OpenClipModel(Model):
    """A CLIP built by open_clip. Legend: B images, M texts, L tokens, d features.

    Args:
        network: `open_clip.CLIP` or `open_clip.CustomTextCLIP`.
        config: the JSON configuration it was built from.
    """

    network: Any

    def __init__(self, network: nn.Module, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.config = dict(config)
        self.context_length: int = self.network.context_length
        causal = not hasattr(network, "text") and self.network.attn_mask is not None
        self._cuts = causal and self.network.text_pool_type == "argmax"

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> OpenClipModel:
        """The network that `structure()["config"]` describes, its weights yet to be loaded."""
        from orchestrator.models.open_clip_bridge import create

        return create(config)

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the multiplier of similarities, a trained scalar."""
        return self.network.logit_scale

    def structure(self) -> dict[str, Any]:
        """`{"class": ..., "config": open_clip's JSON configuration}`."""
        return {"class": f"{type(self).__module__}:{type(self).__qualname__}", "config": self.config}

    def encode_image(self, images: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] to L2-normalised features [B, d]."""
        return F.normalize(self.network.encode_image(images), dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Token ids [M, L], L at most the context length, to L2-normalised features [M, d]."""
        if self._cuts:
            return F.normalize(self._encode_cut(tokens), dim=-1)
        full = F.pad(tokens, (0, self.context_length - tokens.shape[1]))
        return F.normalize(self.network.encode_text(full), dim=-1)

    def _encode_cut(self, tokens: Tensor) -> Tensor:
        """open_clip's `CLIP.encode_text`, for the first L positions only: [M, L] to [M, d]."""
        net, length = self.network, tokens.shape[1]
        dtype = net.transformer.get_cast_dtype()
        x = net.token_embedding(tokens).to(dtype) + net.positional_embedding[:length].to(dtype)
        x = net.transformer(x, attn_mask=net.attn_mask[:length, :length])
        x = net.ln_final(x)[torch.arange(len(tokens), device=x.device), tokens.argmax(dim=-1)]
        if isinstance(net.text_projection, nn.Linear):
            return net.text_projection(x)
        return x if net.text_projection is None else x @ net.text_projection
