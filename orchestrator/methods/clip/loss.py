"""CLIP's contrastive loss, right at any number of ranks.

Legend: B rows of this rank, N = B * ranks rows in all, d features. Rows are L2-normalised; arithmetic is that of the
inputs (float32 in training, also under mixed precision).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(image: Tensor, text: Tensor, all_image: Tensor, all_text: Tensor, scale: Tensor, rank: int) -> Tensor:
    """Symmetric cross-entropy of this rank's rows against all columns (open_clip `ClipLoss`, local_loss,
    gather_with_grad).

    Args:
        image, text: this rank's features [B, d].
        all_image, all_text: everybody's [N, d], in rank order, gathered with gradient.
        scale: multiplier of the similarities (1 / temperature, not its logarithm), scalar.
        rank: whose rows these are.
    """
    labels = matches(image, rank)
    by_image = F.cross_entropy(scale * image @ all_text.T, labels)
    by_text = F.cross_entropy(scale * text @ all_image.T, labels)
    return (by_image + by_text) / 2


def matches(image: Tensor, rank: int) -> Tensor:
    """For each of this rank's rows [B], the column of its pair among all."""
    return torch.arange(len(image), device=image.device) + rank * len(image)
