"""Affinity mimicking (TinyCLIP, section 3.1): the teacher's softmax rows over the batch are the student's targets.

Legend: B rows of this rank, N = B * ranks rows in all, d student's and d' teacher's features. Only similarities meet,
so d and d' may differ. Rows are L2-normalised; arithmetic is that of the inputs. Memory grows with N, not with its
square.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from orchestrator.training.rows import mean_over_rows


@dataclass(frozen=True)
class Affinity:
    """Soft cross-entropies of both directions, and the mean of the two less the teacher's entropy (0 for a perfect
    student).
    """

    image_to_text: Tensor
    text_to_image: Tensor
    kl: Tensor


@dataclass(frozen=True)
class Pairs:
    """One model's features, this rank's rows [B, d] and everybody's [N, d] in rank order, and its multiplier."""

    image: Tensor
    text: Tensor
    all_image: Tensor
    all_text: Tensor
    scale: Tensor | float


def affinity_mimicking(student: Pairs, teacher: Pairs) -> Affinity:
    """Cross-entropy of the student's softmax rows under the teacher's (official `ClipSoftLoss`); none flows to the
    teacher.

    With every rank's rows against everybody's columns, the mean over ranks is the loss on the concatenated batch.
    """
    i2t, kl_i2t = _soft_cross_entropy(
        (student.image, student.all_text, student.scale), (teacher.image, teacher.all_text, teacher.scale)
    )
    t2i, kl_t2i = _soft_cross_entropy(
        (student.text, student.all_image, student.scale), (teacher.text, teacher.all_image, teacher.scale)
    )
    return Affinity(i2t, t2i, (kl_i2t + kl_t2i) / 2)


Side = tuple[Tensor, Tensor, Tensor | float]
"""Rows [B, d], columns [N, d] and the multiplier of their similarities."""


def _soft_cross_entropy(student: Side, teacher: Side) -> tuple[Tensor, Tensor]:
    """Mean over rows of -sum p' log p, and of the divergence KL(p' || p), without gradient."""
    (rows, columns, scale), (teacher_rows, teacher_columns, teacher_scale) = student, teacher

    def mean_of(rows: Tensor, teacher_rows: Tensor) -> tuple[Tensor, Tensor]:
        log_target = F.log_softmax((teacher_scale * teacher_rows @ teacher_columns.T).detach(), dim=1)
        target, log_probability = log_target.exp(), F.log_softmax(scale * rows @ columns.T, dim=1)
        cross_entropy = -(target * log_probability).sum(dim=1).mean()
        divergence = (target * (log_target - log_probability.detach())).sum(dim=1).mean()
        return cross_entropy, divergence

    return mean_over_rows(mean_of, (rows, teacher_rows), len(columns))  # type: ignore[return-value]
