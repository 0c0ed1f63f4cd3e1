"""Forward and backward of one step, in micro-batches where the batch does not fit in memory.

A contrastive loss needs all features of the batch at once, so gradients cannot simply be accumulated. Gradient
caching (Gao et al. 2021, GradCache) encodes every micro-batch without keeping activations, computes the loss and its
gradient with respect to the features once, then encodes each micro-batch again, now with gradient, and pushes the
cached feature gradient through it. The loss's own parameters (the logit scale) get their gradient from the one loss
call: nothing is multiplied. Both encodings of a micro-batch draw the same random numbers, because each is seeded by
the step and the micro-batch's place in it. What needs no gradient (`Method.targets`: a teacher, a locked tower) is
computed once.
"""

from __future__ import annotations

import dataclasses
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.data.draws import integer
from orchestrator.training.distributed import from_all_ranks
from orchestrator.training.method import Features, LossOutput, Method
from orchestrator.training.parallel import Parallel, Replicated
from orchestrator.training.types import Batch, World

REDUCED = (torch.bfloat16, torch.float16)
ALONE = Replicated(World())


def seed_torch(seed: int, purpose: str, *numbers: int) -> None:
    """Seed torch's generators from what is being done, so that a position in training alone decides every draw."""
    torch.manual_seed(integer(seed, purpose, *numbers) % 2**63)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Encodes parts of one rank's batch, reproducibly.

    Attributes:
        method: whose `targets` and `encode` are called.
        normalise: uint8 pixels [B, 3, H, W] to normalised floats, on their device.
        device: where the arithmetic happens; the batch may be elsewhere. Tokens stay where they are: a text tower
            looks at their lengths first, on the CPU.
        autocast: bf16 or fp16 encoders, or None; features leave as float32 all the same.
        seed: of the stage.
    """

    method: Method
    normalise: Callable[[Tensor], Tensor]
    device: torch.device
    autocast: torch.dtype | None
    seed: int

    def __call__(self, batch: Batch, first: int, position: tuple[int, int]) -> Features:
        """Features of a micro-batch that begins at row `first` of the rank's batch, at position (samples, rank)."""
        return self._encode(self._prepare(batch), first, position)

    def with_targets(self, batch: Batch, first: int, position: tuple[int, int]) -> tuple[Features, Features]:
        """The same features, and what the loss needs beside them without gradient."""
        prepared = self._prepare(batch)
        seed_torch(self.seed, "targets", *position, first)
        with torch.no_grad(), self._low_precision():
            targets = _as_float32(self.method.targets(prepared))
        return self._encode(prepared, first, position), targets

    def _encode(self, prepared: Batch, first: int, position: tuple[int, int]) -> Features:
        seed_torch(self.seed, "encode", *position, first)
        with self._low_precision():
            return _as_float32(self.method.encode(prepared))

    def _prepare(self, batch: Batch) -> Batch:
        return dataclasses.replace(
            batch,
            images=tuple(self.normalise(view.to(self.device, non_blocking=True)) for view in batch.images),
            embeddings={name: value.to(self.device, non_blocking=True) for name, value in batch.embeddings.items()},
        )

    def _low_precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.autocast or torch.bfloat16, enabled=bool(self.autocast))


def _as_float32(features: Features) -> Features:
    return {name: value.float() if value.dtype in REDUCED else value for name, value in features.items()}


def forward_backward(
    encode: Encoder,
    batch: Batch,
    micro_batch: int | None,
    position: tuple[int, int],
    state: Mapping[str, Any],
    *,
    parallel: Parallel = ALONE,
    loss_scale: Tensor | float = 1.0,
) -> LossOutput:
    """Add the gradient of `loss_scale` times the loss on `batch` to the parameters, encoding at most `micro_batch`
    samples at once.

    The last backward pass happens inside `parallel.last_backward()`; `parallel.finish()` is the caller's. The returned
    terms are this rank's, and not scaled.
    """
    if micro_batch is None or micro_batch >= len(batch):
        return _at_once(encode, batch, position, state, parallel, loss_scale)
    return _in_two_passes(encode, batch, micro_batch, position, state, parallel, loss_scale)


def _at_once(
    encode: Encoder,
    batch: Batch,
    position: tuple[int, int],
    state: Mapping[str, Any],
    parallel: Parallel,
    loss_scale: Tensor | float,
) -> LossOutput:
    features, targets = encode.with_targets(batch, 0, position)
    output = _loss(encode, {**targets, **features}, position, state)
    with parallel.last_backward():
        (output.total * loss_scale).backward()
    return output


def _in_two_passes(
    encode: Encoder,
    batch: Batch,
    micro_batch: int,
    position: tuple[int, int],
    state: Mapping[str, Any],
    parallel: Parallel,
    loss_scale: Tensor | float,
) -> LossOutput:
    with torch.no_grad():
        cached, targets = _encode_all(encode, batch, micro_batch, position)
    for value in cached.values():
        value.requires_grad_(value.is_floating_point())
    output = _loss(encode, {**targets, **cached}, position, state)
    (output.total * loss_scale).backward()
    gradients = {name: value.grad for name, value in cached.items() if value.grad is not None}
    for first, part in _split(batch, micro_batch):
        pairs = _with_gradients(encode(part, first, position), gradients, first)
        if not pairs:
            break  # all that is encoded is frozen
        with parallel.last_backward() if first + micro_batch >= len(batch) else nullcontext():
            values, slopes = zip(*pairs, strict=True)
            torch.autograd.backward(values, slopes)
    return output


def _loss(encode: Encoder, features: Features, position: tuple[int, int], state: Mapping[str, Any]) -> LossOutput:
    seed_torch(encode.seed, "loss", *position)
    return encode.method.loss(features, state)


def _encode_all(
    encode: Encoder, batch: Batch, micro_batch: int, position: tuple[int, int]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Features and targets of all rows, a micro-batch at a time."""
    encoded = [encode.with_targets(part, first, position) for first, part in _split(batch, micro_batch)]
    features, targets = zip(*encoded, strict=True)
    return _joined(features), _joined(targets)


def _joined(parts: tuple[Features, ...]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _with_gradients(features: Features, gradients: Mapping[str, Tensor], first: int) -> list[tuple[Tensor, Tensor]]:
    """Features that need a gradient, each with its rows of the cached one."""
    return [
        (value, gradients[name][first : first + len(value)])
        for name, value in features.items()
        if value.requires_grad and name in gradients
    ]


def _split(batch: Batch, size: int) -> Iterator[tuple[int, Batch]]:
    for first in range(0, len(batch), size):
        yield first, _rows(batch, first, first + size)


def _rows(batch: Batch, start: int, stop: int) -> Batch:
    rows = slice(start, stop)
    return Batch(
        images=tuple(view[rows] for view in batch.images),
        tokens=tuple(tokens[rows] for tokens in batch.tokens),
        uids=batch.uids[rows],
        embeddings={name: value[rows] for name, value in batch.embeddings.items()},
    )


def choose_micro_batch(encode: Encoder, batch: Batch, position: tuple[int, int], world: World) -> int:
    """The largest of share, share / 2, share / 4, ... samples whose activations fit into half of the free memory, the
    same on all ranks; `share` is this rank's part of the batch.

    Measured on the batch's first rows: the bytes that the backward pass needs kept, for two sizes, whose difference is
    what a sample costs.
    """
    few = max(1, min(8, len(batch) // 2))
    less, more = (_kept_bytes(encode, part, position) for part in (_rows(batch, 0, few), _rows(batch, 0, 2 * few)))
    a_sample = max(1, (more - less) // few)
    budget = _free_bytes(world) // 2 - max(0, less - few * a_sample)
    size = len(batch)
    while size > 1 and size * a_sample > budget:
        size = -(-size // 2)
    return min(from_all_ranks(size, world))


def _kept_bytes(encode: Encoder, batch: Batch, position: tuple[int, int]) -> int:
    """Bytes that encoding a batch keeps for its backward pass, weights excepted."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in encode.method.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = encode(batch, 0, position)
    del features
    return sum(kept.values())


def _free_bytes(world: World) -> int:
    """Memory this rank may still take: of its GPU, or its part of the machine's."""
    if world.device.type == "cuda":
        cached = torch.cuda.memory_reserved(world.device) - torch.cuda.memory_allocated(world.device)
        return torch.cuda.mem_get_info(world.device)[0] + cached
    import psutil

    neighbours = from_all_ranks(platform.node(), world).count(platform.node())
    return min(psutil.virtual_memory().available, _container_bytes()) // neighbours


def _container_bytes() -> int:
    """What the container still grants, which the machine's own figures do not show (Linux control groups, v2)."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return sys.maxsize
    return sys.maxsize if limit == "max" else int(limit) - int(used)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch means that an allocation, of a GPU or of this process, was refused."""
    refused = ("DefaultCPUAllocator: can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in refused)
    )
