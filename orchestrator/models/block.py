"""The transformer block of both towers, with less arithmetic than open_clip's for the same function.

It has the modules of open_clip's `ResidualAttentionBlock`, so weights and their names are the same. Where only one
position of the output is looked at (the class token, the end of the text), the last block is told so by `read` and
computes that one alone. Its query looks at all tokens, but their keys and values need not be computed: with W_k, W_v
of one head, q . (W_k x_j) is (W_k^T q) . x_j, and sum_j a_j W_v x_j is W_v (sum_j a_j x_j). What was two products of
width x width for each token becomes two for each sequence.

Attention goes to PyTorch's fused kernels; on a CPU their preparation outweighs the work of short sequences, which take
plain products instead.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHORT = 32
"""Tokens up to which a CPU multiplies attention out."""


class Block(nn.Module):
    """x + attention(ln_1(x)), then x + mlp(ln_2(x)). Legend: B sequences, L tokens, H heads of c channels, w = H c.

    Args:
        plain: the open_clip block whose modules it takes over.
    """

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.ln_1 = plain.ln_1
        self.attn: nn.MultiheadAttention = plain.attn  # holds weights; its own forward is not used
        self.ls_1 = plain.ls_1
        self.ln_2 = plain.ln_2
        self.mlp = plain.mlp
        self.ls_2 = plain.ls_2

    def get_weight_dtype(self) -> torch.dtype:
        """For open_clip's `Transformer.get_cast_dtype`."""
        return self.mlp.c_fc.weight.dtype

    def forward(
        self,
        x: Tensor,
        k_x: None = None,
        v_x: None = None,
        attn_mask: Tensor | None = None,
        causal: bool = False,
        read: Tensor | int | None = None,
    ) -> Tensor:
        """Tokens [B, L, w] to tokens [B, L, w], or, with `read`, to the one token at that position of each, [B, w].

        Args:
            k_x, v_x: open_clip's, always None: attention is to the block's own input.
            attn_mask: added to the scores, [L, L] or [B H, L, L]; not with `read`.
            causal: a token sees itself and what is before it.
            read: one position for all sequences, which sees all tokens, or [B] positions.
        """
        states = self.ln_1(x)
        if read is None:
            x = x + self.ls_1(self._attend(states, attn_mask, causal))
        else:
            seen = torch.arange(x.shape[1], device=x.device) <= read[:, None] if isinstance(read, Tensor) else None
            x = at(x, read) + self.ls_1(self._attend_once(states, at(states, read), seen))
        return x + self.ls_2(self.mlp(self.ln_2(x)))

    def _attend(self, states: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """Self-attention of all tokens, [B, L, w] to [B, L, w]."""
        attn, (batch, length, width) = self.attn, states.shape
        packed = F.linear(states, attn.in_proj_weight, attn.in_proj_bias)
        heads = packed.view(batch, length, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)  # [3, B, H, L, c]
        if mask is not None:
            mask = mask.to(heads.dtype)
            mask = mask.view(batch, attn.num_heads, length, length) if mask.ndim == 3 else mask
        if length <= SHORT and states.device.type == "cpu":
            mixed = _multiplied_out(heads, _causal(length, heads) if causal else mask)
        else:
            query, key, value = heads
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        return attn.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))

    def _attend_once(self, states: Tensor, asking: Tensor, seen: Tensor | None) -> Tensor:
        """Attention of one token [B, w] to the `seen` [B, L] of all tokens [B, L, w], by the head as above: [B, w].

        A bias of the keys adds the same to all scores of a query, and no softmax sees it.
        """
        attn, heads, width = self.attn, self.attn.num_heads, asking.shape[-1]
        weight_q, weight_k, weight_v = attn.in_proj_weight.view(3, width, width)
        bias_q, _, bias_v = attn.in_proj_bias.view(3, width)
        query = F.linear(asking, weight_q, bias_q).view(-1, heads, width // heads) * (width // heads) ** -0.5
        query = torch.einsum("bhc,hcw->bhw", query, weight_k.view(heads, -1, width))
        scores = query @ states.transpose(1, 2)
        if seen is not None:
            scores = scores.masked_fill(~seen[:, None], float("-inf"))
        mixed = scores.softmax(dim=-1) @ states
        value = torch.einsum("bhw,hcw->bhc", mixed, weight_v.view(heads, -1, width))
        return attn.out_proj(value.reshape(-1, width) + bias_v)


def at(x: Tensor, position: Tensor | int) -> Tensor:
    """One token of each sequence, [B, L, w] to [B, w]."""
    if isinstance(position, int):
        return x[:, position]
    rows = torch.arange(len(x), device=x.device) * x.shape[1] + position
    return x.flatten(0, 1).index_select(0, rows)


def _multiplied_out(heads: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(Q K^T / sqrt(c) + mask) V of packed [3, B, H, L, c], to [B, H, L, c]."""
    query, key, value = heads.reshape(3, -1, *heads.shape[3:])
    query = query * query.shape[-1] ** -0.5
    scores = torch.bmm(query, key.transpose(1, 2)).view(*heads.shape[1:4], -1)
    scores = scores if mask is None else scores + mask
    return torch.bmm(scores.softmax(dim=-1).flatten(0, 1), value).view(heads.shape[1:])


def _causal(length: int, like: Tensor) -> Tensor:
    return like.new_full((length, length), float("-inf")).triu_(1)


class PatchDropout(nn.Module):
    """In training, keeps the class token and a random share of an image's patches (FLIP, Li et al. 2023).

    The same number of each image: max(1, int(patches x (1 - share))). As open_clip's, but drawn where the patches are.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def kept(self, patches: int) -> int:
        """How many of the patches are kept now."""
        return max(1, int(patches * (1 - self.share))) if self.training else patches

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, 1 + patches, w], the class token first, to [B, 1 + kept, w]."""
        batch, length, width = x.shape
        kept = self.kept(length - 1)
        if kept == length - 1:
            return x
        chosen = torch.randn(batch, length - 1, device=x.device).topk(kept, dim=1).indices + 1
        chosen = torch.cat([chosen.new_zeros(batch, 1), chosen], dim=1)
        return x.gather(1, chosen[:, :, None].expand(-1, -1, width))
