"""CLIP's contrastive loss, right at any number of ranks.

Legend: B rows of this rank, N = B * ranks rows in all, d features. Rows are L2-normalised; arithmetic is that of the
inputs (float32 in training, also under mixed precision). Memory grows with N, not with its square.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.training.rows import mean_over_rows


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
    by_image = _cross_entropy(image, all_text, scale, labels)
    by_text = _cross_entropy(text, all_image, scale, labels)
    return (by_image + by_text) / 2


def matches(image: Tensor, rank: int) -> Tensor:
    """For each of this rank's rows [B], the column of its pair among all."""
    return torch.arange(len(image), device=image.device) + rank * len(image)


def _cross_entropy(rows: Tensor, columns: Tensor, scale: Tensor, labels: Tensor) -> Tensor:
    def mean_of(rows: Tensor, labels: Tensor) -> tuple[Tensor]:
        return (F.cross_entropy(scale * rows @ columns.T, labels),)

    return mean_over_rows(mean_of, (rows, labels), len(columns))[0]
