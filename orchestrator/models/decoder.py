"""A causal transformer that writes a text while it looks at an image: CLIP's text tower with cross-attention.

The blocks are those of the text tower (models/block.py), so weights keep their names; between self-attention and
feed-forward layer each looks at the image's tokens. `Writing` is the decoder at work: it remembers the keys and values
of what is written, so that the next token costs one token's arithmetic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.models.block import Block

if TYPE_CHECKING:
    from orchestrator.models.captioner import Captioner

KeysValues = tuple[Tensor, Tensor]
"""Keys and values, [B, H, L, c] each."""


class CrossAttention(nn.Module):
    """Text states [B, T, w] look at an image's tokens [B, L, D]. Legend: H heads of c channels, w = H c.

    Args:
        width: w, of the text.
        heads: H.
        seen_width: D, of the image's tokens.
        scale: standard deviation of the initial output projection.
    """

    def __init__(self, width: int, heads: int, seen_width: int, scale: float) -> None:
        super().__init__()
        self.heads = heads
        self.ask = nn.Linear(width, width)
        self.offer = nn.Linear(seen_width, 2 * width)
        self.out_proj = nn.Linear(width, width)
        for layer, deviation in ((self.ask, width**-0.5), (self.offer, seen_width**-0.5), (self.out_proj, scale)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def offered(self, seen: Tensor) -> KeysValues:
        """Keys and values of image tokens [B, L, D]."""
        batch, length, _ = seen.shape
        keys, values = self.offer(seen).view(batch, length, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return keys, values

    def forward(self, states: Tensor, offered: KeysValues) -> Tensor:
        """States [B, T, w] to what they found, [B, T, w]."""
        queries = self.ask(states).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.out_proj(F.scaled_dot_product_attention(queries, *offered).transpose(1, 2).flatten(2))


class DecoderBlock(Block):
    """x + self-attention, + cross-attention, + mlp, each of the normalised x.

    Args:
        plain: the open_clip block whose modules it takes over.
        seen_width: width of the image's tokens.
    """

    def __init__(self, plain: nn.Module, seen_width: int) -> None:
        super().__init__(plain)
        width, heads = self.attn.embed_dim, self.attn.num_heads
        self.ln_cross = nn.LayerNorm(width)
        self.cross = CrossAttention(width, heads, seen_width, self.attn.out_proj.weight.std().item())

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:  # type: ignore[override]
        """Text tokens [B, T, w], each looking back and at the image tokens [B, L, D], to [B, T, w]."""
        x = x + self.ls_1(self._attend(self.ln_1(x), None, causal=True))
        return self._look(x, self.cross.offered(seen))

    def add(self, x: Tensor, before: KeysValues | None, offered: KeysValues) -> tuple[Tensor, KeysValues]:
        """One token more [B, 1, w] after those with the keys and values `before`; the token's state, and both."""
        packed = F.linear(self.ln_1(x), self.attn.in_proj_weight, self.attn.in_proj_bias)
        query, key, value = packed.unflatten(-1, (3, self.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if before is not None:
            key, value = torch.cat([before[0], key], dim=2), torch.cat([before[1], value], dim=2)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self._look(x + self.ls_1(self.attn.out_proj(mixed)), offered), (key, value)

    def _look(self, x: Tensor, offered: KeysValues) -> Tensor:
        x = x + self.cross(self.ln_cross(x), offered)
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class Writing:
    """A captioner's decoder in the middle of R = images x beams texts.

    Args:
        captioner: the model (captioner.py).
        seen: quantised image tokens [images, L, D].
        beams: texts an image, next to each other.
    """

    def __init__(self, captioner: Captioner, seen: Tensor, beams: int) -> None:
        self._captioner, self._tower = captioner, captioner.text_tower
        self._blocks: list[DecoderBlock] = list(self._tower.transformer.resblocks)
        self._before: list[KeysValues | None] = [None] * len(self._blocks)
        offered = [block.cross.offered(seen) for block in self._blocks]
        self._offered = [(k.repeat_interleave(beams, 0), v.repeat_interleave(beams, 0)) for k, v in offered]
        self._length = 0

    def add(self, rows: Tensor) -> Tensor:
        """Append a token (its row in the table) to each text, [R]; log-probabilities of the next one's row, [R, V]."""
        x = (self._tower.token_embedding(rows) + self._tower.positional_embedding[self._length])[:, None]
        for number, block in enumerate(self._blocks):
            x, self._before[number] = block.add(x, self._before[number], self._offered[number])
        self._length += 1
        return self._captioner.logits(self._tower.ln_final(x[:, 0])).float().log_softmax(dim=-1)

    def reorder(self, origin: Tensor) -> None:
        """Go on with the texts at these places, [R], in their order; each of its own image."""
        self._before = [None if kept is None else (kept[0][origin], kept[1][origin]) for kept in self._before]
