"""How much arithmetic a step does: the models' own count (models/flops.py), for a forward and a backward pass."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from orchestrator.models.flops import forward_flops
from orchestrator.models.interface import Model
from orchestrator.training.types import Batch

TRAINED, FROZEN = 3, 1
"""Forward passes that a step costs: the backward pass is worth two, for weights and for activations."""


def step_flops(model: Model, batch: Batch) -> float:
    """Operations of training `model` one step on all views of this rank's batch; a frozen tower costs one pass."""
    image = text = 0.0
    for view in batch.images:
        image += forward_flops(model, images=len(view))[0]
    for tokens in batch.tokens:
        text += forward_flops(model, tokens=tokens)[1]
    return _passes(_tower(model, image=True)) * image + _passes(_tower(model, image=False)) * text


def device_name(device: torch.device) -> str:
    """The device's product name, for looking up its peak."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _passes(parameters: Iterator[nn.Parameter]) -> int:
    return TRAINED if any(parameter.requires_grad for parameter in parameters) else FROZEN


def _tower(model: Model, image: bool) -> Iterator[nn.Parameter]:
    for name, parameter in model.named_parameters():
        if parameter.ndim and (".visual." in f".{name}") == image:
            yield parameter
