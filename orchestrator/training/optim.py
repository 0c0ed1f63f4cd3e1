"""AdamW over a method's parameter groups, and the one place where gradients are clipped."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from orchestrator.training.config import TrainSettings
from orchestrator.training.types import Group


def build_optimizer(groups: Sequence[Group], settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW (fused) over the non-empty groups; each remembers its `lr_scale`."""
    beta1, beta2 = settings.betas
    options = [
        {
            "params": [parameter for _, parameter in group.parameters],
            "weight_decay": settings.weight_decay if group.weight_decay is None else group.weight_decay,
            "lr_scale": group.lr_scale,
        }
        for group in groups
        if group.parameters
    ]
    return torch.optim.AdamW(options, lr=settings.learning_rate, betas=(beta1, beta2), eps=settings.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the schedule's `rate` times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All parameters being trained, in the optimiser's order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float | None) -> Tensor:
    """Scale gradients in place to a global norm of at most `limit` (None: leave them); the norm before, a scalar."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm
