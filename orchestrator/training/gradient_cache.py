"""Forward and backward of one step, in micro-batches where the batch does not fit in memory.

A contrastive loss needs all features of the batch at once, so gradients cannot simply be accumulated. Gradient
caching (Gao et al. 2021, GradCache) encodes every micro-batch without keeping activations, computes the loss and its
gradient with respect to the features once, then encodes each micro-batch again, now with gradient, and pushes the
cached feature gradient through it. The loss's own parameters (the logit scale) get their gradient from the one loss
call: nothing is multiplied. Both encodings of a micro-batch draw the same random numbers, because each is seeded by
the step and the micro-batch's place in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from orchestrator.data.draws import integer
from orchestrator.training.method import Features, LossOutput, Method
from orchestrator.training.types import Batch


def seed_torch(seed: int, purpose: str, *numbers: int) -> None:
    """Seed torch's generators from what is being done, so that a position in training alone decides every draw."""
    torch.manual_seed(integer(seed, purpose, *numbers) % 2**63)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Encodes parts of one rank's batch, reproducibly.

    Attributes:
        method: whose `encode` is called.
        normalise: uint8 pixels [B, 3, H, W] to normalised floats, on their device.
        device: where the arithmetic happens; the batch may be elsewhere.
        autocast: bf16 encoders; features leave as float32 all the same.
        seed: of the stage.
    """

    method: Method
    normalise: Callable[[Tensor], Tensor]
    device: torch.device
    autocast: bool
    seed: int

    def __call__(self, batch: Batch, first: int, position: tuple[int, int]) -> Features:
        """Features of a micro-batch that begins at row `first` of the rank's batch, at position (samples, rank)."""
        prepared = dataclasses.replace(
            batch,
            images=tuple(self.normalise(view.to(self.device, non_blocking=True)) for view in batch.images),
            tokens=tuple(tokens.to(self.device, non_blocking=True) for tokens in batch.tokens),
            embeddings={name: value.to(self.device, non_blocking=True) for name, value in batch.embeddings.items()},
        )
        seed_torch(self.seed, "encode", *position, first)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            features = self.method.encode(prepared)
        reduced = (torch.bfloat16, torch.float16)
        return {name: value.float() if value.dtype in reduced else value for name, value in features.items()}


def forward_backward(
    encode: Encoder, batch: Batch, micro_batch: int | None, position: tuple[int, int], state: Mapping[str, Any]
) -> LossOutput:
    """Add the gradient of the loss on `batch` to the parameters, encoding at most `micro_batch` samples at once."""
    if micro_batch is None or micro_batch >= len(batch):
        features = encode(batch, 0, position)
        seed_torch(encode.seed, "loss", *position)
        output = encode.method.loss(features, state)
        output.total.backward()
        return output
    with torch.no_grad():
        encoded = [encode(part, first, position) for first, part in _split(batch, micro_batch)]
    cached = {name: torch.cat([part[name] for part in encoded]) for name in encoded[0]}
    del encoded
    for value in cached.values():
        value.requires_grad_(value.is_floating_point())
    seed_torch(encode.seed, "loss", *position)
    output = encode.method.loss(cached, state)
    output.total.backward()
    for first, part in _split(batch, micro_batch):
        features = encode(part, first, position)
        outputs, gradients = [], []
        for name, value in features.items():
            gradient = cached[name].grad
            if value.requires_grad and gradient is not None:
                outputs.append(value)
                gradients.append(gradient[first : first + len(part)])
        torch.autograd.backward(outputs, gradients)
    return output


def _split(batch: Batch, size: int) -> Iterator[tuple[int, Batch]]:
    for first in range(0, len(batch), size):
        rows = slice(first, first + size)
        yield (
            first,
            Batch(
                images=tuple(view[rows] for view in batch.images),
                tokens=tuple(tokens[rows] for tokens in batch.tokens),
                uids=batch.uids[rows],
                embeddings={name: value[rows] for name, value in batch.embeddings.items()},
            ),
        )
