"""Ranks: finding one's place among them, and the few collectives the loop needs.

Methods gather features inside their losses so that the *mean over ranks* of the back-propagated gradients is the
gradient of the loss on the concatenated batch; averaging them is parallel.py's. One process needs no process group,
and every function here is then the identity. Whoever starts the processes (torchrun, Ray Train, a test) sets up the
group, or lets `from_environment` do it from torchrun's variables.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from orchestrator.training.types import World


def current_world(device: torch.device | None = None) -> World:
    """This process's place in the process group that exists; alone if there is none."""
    device = device or torch.device("cpu")
    if not dist.is_initialized():
        return World(device=device)
    return World(rank=dist.get_rank(), size=dist.get_world_size(), device=device)


@contextmanager
def from_environment(device_type: str | None = None) -> Iterator[World]:
    """Join the group of torchrun's variables (gloo on CPU, NCCL on GPUs), leave it at the end; alone without them.

    `device_type` is `cpu` or `cuda`; by default GPUs where there are any.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = device_type or ("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(chosen, local) if chosen == "cuda" else torch.device(chosen)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World(device=device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield current_world(device)
    finally:
        dist.destroy_process_group()


def mean_over_ranks(values: Tensor, world: World) -> Tensor:
    """Element-wise mean of `values` [n] over ranks."""
    if world.size == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / world.size


def same_everywhere(module: nn.Module, world: World) -> None:
    """Give every rank the first rank's weights and buffers: equal seeds need not give equal bits on unequal CPUs."""
    if world.size == 1:
        return
    for tensor in module.state_dict(keep_vars=True).values():
        if isinstance(tensor, Tensor):
            dist.broadcast(tensor.data, src=0)


def any_rank(flags: Sequence[bool], world: World) -> list[bool]:
    """For each flag, whether any rank raises it. One small collective."""
    if world.size == 1:
        return list(flags)
    values = torch.tensor(flags, dtype=torch.int32, device=world.device)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return [bool(value) for value in values.tolist()]


def from_all_ranks(value: Any, world: World) -> list[Any]:
    """Each rank's small picklable value, in rank order. For rare moments only."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values
