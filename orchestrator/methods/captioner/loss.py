"""The captioner's two losses, right at any number of ranks.

Legend: B rows of this rank. `mean over ranks` of the gradients is the gradient of the loss on the concatenated batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from orchestrator.training.distributed import mean_over_ranks
from orchestrator.training.types import World


def language_modelling(loss: Tensor, tokens: Tensor, world: World) -> Tensor:
    """Mean cross-entropy over all tokens of the global batch (official `BertLMHeadModel.forward`), this rank's share.

    Args:
        loss: summed over the tokens of each caption, [B].
        tokens: how many those are, [B].
    """
    return loss.sum() / mean_over_ranks(tokens.sum().float(), world)


def codebook_loss(commitment: Tensor, codebook: Tensor, beta: float, beta_weighs: str) -> Tensor:
    """Mean squared distance of tokens and codes in its two parts (official `VectorQuantizer2`: `legacy` is
    `beta_weighs` "codebook", its negation "tokens").

    Args:
        commitment, codebook: by image, [B]: what moves the tokens, what moves the codes.
        beta: weight of the one that `beta_weighs` names ("tokens": commitment).
    """
    if beta_weighs == "codebook":
        return commitment.mean() + beta * codebook.mean()
    return beta * commitment.mean() + codebook.mean()


def usage(codes: Tensor, num_codes: int, world: World) -> Tensor:
    """Share of each code among those of the global batch [B, n] (this rank's part): [num_codes], summing to 1."""
    counts = torch.bincount(codes.flatten(), minlength=num_codes).float()
    return mean_over_ranks(counts, world) / codes.numel()


def perplexity(shares: Tensor) -> Tensor:
    """exp(entropy) of the codes' shares: how many equally frequent ones would be as hard to guess."""
    return torch.special.entr(shares).sum().exp()
