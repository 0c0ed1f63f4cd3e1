"""Losses and methods on several real ranks (gloo, one process each), and the same on one."""

from __future__ import annotations

import socket
from datetime import timedelta
from multiprocessing import set_forkserver_preload
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor

from orchestrator.methods.clip.config import Clip
from orchestrator.methods.clip.loss import info_nce
from orchestrator.methods.clip.method import ClipMethod
from orchestrator.methods.tinyclip.config import TinyCLIP
from orchestrator.methods.tinyclip.loss import Pairs, affinity_mimicking
from orchestrator.methods.tinyclip.method import TinyClipMethod
from orchestrator.models import catalog
from orchestrator.models.open_clip_bridge import create
from orchestrator.training import rows
from orchestrator.training.distributed import current_world
from orchestrator.training.gather import gather
from orchestrator.training.gradient_cache import Encoder, forward_backward
from orchestrator.training.method import Build, Method
from orchestrator.training.parallel import spread
from orchestrator.training.types import Batch, World

SMALL = catalog.resolve("tiny")
SMALL["text_cfg"] |= {"vocab_size": 64}


def on_ranks(size: int, jobs: dict[str, tuple[str, dict]], folder: Path) -> dict[str, list[dict]]:
    """Results of named jobs, (function of this module, arguments), each a list in rank order. One set of processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    set_forkserver_preload(["torch", "orchestrator.methods.tinyclip.method"])  # imported once, not by every rank
    multiprocessing.start_processes(_work, (size, port, jobs, str(folder)), nprocs=size, start_method="forkserver")
    results = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]
    return {name: [result[name] for result in results] for name in jobs}


def _work(rank: int, size: int, port: int, jobs: dict[str, tuple[str, dict]], folder: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=size, timeout=timedelta(seconds=60))
    try:
        world = current_world()
        torch.save(
            {name: globals()[job](world, **given) for name, (job, given) in jobs.items()}, f"{folder}/{rank}.pt"
        )
    finally:
        dist.destroy_process_group()


def loss_of_rows(
    world: World,
    image: Tensor,
    text: Tensor,
    scale: float,
    teacher: tuple[Tensor, Tensor, float] | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Loss of this rank and its own gradients: contrastive, or affinity mimicking where there is a teacher."""

    def mine(rows: Tensor) -> Tensor:
        return rows.chunk(world.size)[world.rank].to(dtype).clone()

    def pairs(image: Tensor, text: Tensor, scale: Tensor) -> Pairs:
        return Pairs(image, text, gather(image, world), gather(text, world), scale)

    image, text = mine(image).requires_grad_(), mine(text).requires_grad_()
    multiplier = torch.tensor(scale, dtype=dtype, requires_grad=True)
    student = pairs(image, text, multiplier)
    if teacher is None:
        loss = info_nce(image, text, student.all_image, student.all_text, multiplier, world.rank)
        extra = {}
    else:
        theirs = [mine(part).requires_grad_() for part in teacher[:2]]
        soft = affinity_mimicking(student, pairs(*theirs, torch.tensor(teacher[2], dtype=dtype)))
        loss = (soft.image_to_text + soft.text_to_image) / 2
        extra = {"img2text": soft.image_to_text.item(), "text2img": soft.text_to_image.item(), "kl": soft.kl.item()}
    loss.backward()
    if teacher is not None:
        extra["teacher_has_gradient"] = any(part.grad is not None for part in theirs)
    return {"loss": loss.item(), "image": image.grad, "text": text.grad, "scale": multiplier.grad.item()} | extra


def tiny_method(world: World, name: str, **options: Any) -> Method:
    """A method on tiny models in double precision."""
    build = Build(
        model=create(SMALL, seed=1).double(),
        teacher=None if name == "clip" else create(SMALL, seed=2).double(),
        total_samples=12,
        batch=12,
        world=world,
        seed=0,
    )
    return ClipMethod(Clip(), build) if name == "clip" else TinyClipMethod(TinyCLIP(**options), build)


def tiny_batch(world: World, size: int = 12) -> Batch:
    """This rank's part of one global batch."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(size, 3, 32, 32, generator=generator, dtype=torch.float64)
    tokens = torch.randint(1, 62, (size, 6), generator=generator)
    tokens[:, 0], tokens[:, -1] = 62, 63
    part = slice(world.rank * size // world.size, (world.rank + 1) * size // world.size)
    return Batch(images=(images[part],), tokens=(tokens[part],), uids=tuple(f"{i:032x}" for i in range(size))[part])


def features_of(method: Method, batch: Batch) -> dict[str, Tensor]:
    """What a step hands to `loss`: the targets, computed without gradient, and the features."""
    with torch.no_grad():
        targets = method.targets(batch)
    return {**targets, **method.encode(batch)}


def step_gradients(
    world: World,
    name: str,
    options: dict[str, Any],
    micro_batch: int | None = None,
    max_pairs: int = rows.MAX_PAIRS,
) -> dict[str, Any]:
    """A method's loss on one batch, and its parameters' gradients after averaging over ranks."""
    method = tiny_method(world, name, **options)
    parallel = spread(method, world, "none")
    parallel.watch([parameter for parameter in method.parameters() if parameter.requires_grad])
    encode = Encoder(method, lambda pixels: pixels, world.device, autocast=None, seed=0)
    state = {"samples": 0, "phase": "train"}
    with mock.patch.object(rows, "MAX_PAIRS", max_pairs):
        output = forward_backward(encode, tiny_batch(world), micro_batch, (0, world.rank), state, parallel=parallel)
    parallel.finish()
    gradients = {key: value.grad for key, value in method.named_parameters() if value.grad is not None}
    return {"loss": output.total.item(), "gradients": gradients}
