"""Features of all ranks, with the gradient that makes distributed contrastive losses right.

A rank compares its own rows with everybody's columns, so its loss depends on other ranks' features. Without passing
that gradient back the result is silently wrong (its norm halves, its direction changes). Here the backward pass sums
over ranks what each of them found for a row and hands it to the row's owner; with every rank's loss the mean over its
own rows, the mean over ranks of the resulting gradients is the gradient of the loss on the concatenated batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.training.types import World


def gather(features: Tensor, world: World) -> Tensor:
    """Rows of all ranks in rank order: [B, ...] to [size * B, ...], B equal on all ranks; differentiable.

    One process needs no process group: the features themselves.
    """
    return features if world.size == 1 else _Gather.apply(features, world)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, world: World) -> Tensor:
        ctx.world = world
        parts = [torch.empty_like(features) for _ in range(world.size)]
        dist.all_gather(parts, features.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(ctx.world.size)[ctx.world.rank], None
