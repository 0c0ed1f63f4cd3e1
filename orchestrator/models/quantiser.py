"""The codebook: every image token is replaced by the nearest of K learned vectors, and so described by its number.

VQ-VAE's layer (van den Oord et al. 2017) as TL;DR uses it. A token may be cut into several consecutive pieces, each
with a code of its own out of the same book: one code a token says little of a token of many channels. The gradient of
what follows passes straight through to the token; the book itself learns from `codebook` alone, the tokens keep close
to it by `commitment`. The two errors are equal in value and differ in what they move, so they are returned apart and
weighted by who trains (methods/captioner/loss.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Quantised(NamedTuple):
    """Legend: B images, L tokens of D channels, p pieces a token.

    Attributes:
        tokens: the chosen codes in the tokens' place, [B, L, D]; their gradient goes to the tokens.
        codes: their numbers, token by token, piece by piece, [B, L p] int64.
        pieces: what was quantised, without gradient, [B, L p, D / p].
        commitment: mean squared distance of an image's tokens from their codes, [B]; moves the tokens only.
        codebook: the same distance, [B]; moves the codes only.
    """

    tokens: Tensor
    codes: Tensor
    pieces: Tensor
    commitment: Tensor
    codebook: Tensor


class Codebook(nn.Module):
    """K codes for tokens of D channels.

    Args:
        codes: K.
        width: D, a multiple of `pieces`.
        pieces: parts of a token that are quantised apart; a code has D / pieces channels.
    """

    def __init__(self, codes: int, width: int, pieces: int = 1) -> None:
        super().__init__()
        self.pieces = pieces
        self.weight = nn.Parameter(torch.empty(codes, width // pieces))

    def forward(self, tokens: Tensor) -> Quantised:
        """Quantise tokens [B, L, D] (official `VectorQuantizer2.forward`, its loss in two parts)."""
        codes = self.nearest(tokens)
        chosen = nn.functional.embedding(codes, self.weight).view_as(tokens)
        commitment = (chosen.detach() - tokens).square().flatten(1).mean(dim=1)
        codebook = (chosen - tokens.detach()).square().flatten(1).mean(dim=1)
        pieces = tokens.detach().reshape(*codes.shape, -1)
        return Quantised(tokens + (chosen - tokens).detach(), codes, pieces, commitment, codebook)

    @torch.no_grad()
    def nearest(self, tokens: Tensor) -> Tensor:
        """Numbers of the nearest codes of tokens [B, L, D], [B, L p] int64; the lowest among equally near ones.

        In float32 also under mixed precision, whose rounding would choose other codes.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            weight = self.weight.float()
            pieces = tokens.float().reshape(-1, weight.shape[1])
            distance = torch.addmm(weight.square().sum(dim=1), pieces, weight.T, alpha=-2)  # less |z|^2, equal for all
        return distance.min(dim=1).indices.view(len(tokens), -1)
