"""AdamW over a method's parameter groups, and the one place where gradients are clipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from orchestrator.training.config import TrainSettings
from orchestrator.training.types import Group


def build_optimizer(
    groups: Sequence[Group], settings: TrainSettings, depths: Mapping[str, int] | None = None
) -> torch.optim.AdamW:
    """AdamW (fused) over the non-empty groups; each remembers its `lr_scale` and its parameters' names.

    A group falls apart by `no_weight_decay` and by `layer_decay` (BEiT, Bao et al. 2022: a layer learns `layer_decay`
    times as fast as the one above it); and into sharded and whole parameters, for the fused step takes one kind at a
    time.

    Args:
        depths: layers below the outputs of each parameter, by name; 0 for those not in it.
    """
    split: dict[tuple[int, float, float, type], list[tuple[str, nn.Parameter]]] = {}
    for number, group in enumerate(groups):
        for name, parameter in group.parameters:
            decay = settings.weight_decay if group.weight_decay is None else group.weight_decay
            if any(part in name for part in settings.no_weight_decay):
                decay = 0.0
            scale = group.lr_scale * settings.layer_decay ** (depths or {}).get(name, 0)
            split.setdefault((number, decay, scale, type(parameter.data)), []).append((name, parameter))
    beta1, beta2 = settings.betas
    options = [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (_, decay, scale, _), parameters in split.items()
    ]
    return torch.optim.AdamW(options, lr=settings.learning_rate, betas=(beta1, beta2), eps=settings.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the schedule's `rate` times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All parameters being trained, in the optimiser's order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def names_of(optimizer: torch.optim.Optimizer) -> list[str]:
    """Their names, in the same order."""
    return [name for group in optimizer.param_groups for name in group["param_names"]]


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float | None) -> Tensor:
    """Scale gradients in place to a global norm of at most `limit` (None: leave them); the norm before, a scalar."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm
