"""Sharded weights (FSDP2) and buckets train what one process trains, and their checkpoints fit each other."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from multiprocessing import set_forkserver_preload
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn
from training_tiny import RecordingIO

from orchestrator.methods.clip.config import Clip
from orchestrator.methods.clip.method import ClipMethod
from orchestrator.models import catalog
from orchestrator.models.open_clip_bridge import create
from orchestrator.training import optim, parallel
from orchestrator.training.config import TrainSettings
from orchestrator.training.distributed import current_world
from orchestrator.training.gradient_cache import Encoder, forward_backward
from orchestrator.training.loop import fit
from orchestrator.training.method import Build
from orchestrator.training.parallel import Replicated, Sharded, spread
from orchestrator.training.types import Batch, FitSpec, Phase, Report, World

BATCH, STEPS, CUT = 12, 10, 6
SMALL = catalog.resolve("tiny")
SMALL["text_cfg"] |= {"vocab_size": 64, "layers": 2}


def batch_of(step: int, world: World) -> Batch:
    """This rank's rows of the step's global batch."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(BATCH, 3, 32, 32, generator=generator, dtype=torch.float64)
    tokens = torch.randint(1, 62, (BATCH, 6), generator=generator)
    tokens[:, 0], tokens[:, -1] = 62, 63
    mine = slice(world.rank * BATCH // world.size, (world.rank + 1) * BATCH // world.size)
    return Batch((images[mine],), (tokens[mine],), tuple(f"{row:032x}" for row in range(BATCH))[mine])


def trained(
    world: World, steps: range, sharding: str = "none", start: dict | None = None, micro_batch: int | None = None
) -> dict[str, Any]:
    """Whole weights, optimiser state and gradient norms after some steps, from a former result or from the seed."""
    model = create(SMALL, seed=1).double()
    method = ClipMethod(Clip(), Build(model, None, STEPS * BATCH, BATCH, world, seed=0))
    if start is not None:
        method.load_state_dict(start["weights"])
    spreading = spread(method, world, sharding)
    optimizer = optim.build_optimizer(method.groups(Phase("train", STEPS * BATCH)), TrainSettings(steps=1))
    if start is not None:
        spreading.load_optimizer_state(optimizer, start["optimizer"])
    parameters = optim.parameters_of(optimizer)
    spreading.watch(parameters)
    encode, norms = Encoder(method, lambda pixels: pixels, world.device, None, seed=0), []
    for step in steps:
        optimizer.zero_grad()
        forward_backward(encode, batch_of(step, world), micro_batch, (step, world.rank), {}, parallel=spreading)
        spreading.finish()
        norms.append(spreading.clip(parameters, 0.5).item())
        optimizer.step()
        method.on_step_end((step + 1) * BATCH)
        if step == CUT:
            with torch.no_grad():
                method.encode(batch_of(0, world))  # as a validation does: must leave the weights as they are
    kept = sum(part.numel() for part in spreading.local(parameters))
    return {
        "weights": spreading.full_state(method),
        "optimizer": spreading.optimizer_state(optimizer),
        "norms": norms,
        "share": kept / sum(value.numel() for value in method.parameters()),
    }


class Feed:
    """The same batches, from a position on."""

    wait_s = 0.0

    def __init__(self, start: int, world: World) -> None:
        self.start, self.world = start, world

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def __iter__(self) -> Iterator[Batch]:
        for step in count(self.start // BATCH):
            yield batch_of(step, self.world)


def fitted(world: World, sharding: str, io: RecordingIO) -> Report:
    """The last report of the whole loop, whose result is the moving average."""
    average = {"ema": {"decay": 0.5}, "result": "ema"}
    settings = TrainSettings(steps=8, batch=BATCH, sharding=sharding, warmup_steps=2, clip_grad_norm=0.5, **average)
    build = Build(create(SMALL, seed=1).double(), None, 8 * BATCH, BATCH, world, seed=0)
    spec = FitSpec(settings, 8 * BATCH, lambda pixels: pixels)
    return list(fit(spec, ClipMethod(Clip(), build), lambda start: Feed(start, world), world, io))[-1]


JOBS = {
    "sharded": {"steps": range(STEPS), "sharding": "full", "micro_batch": 2},
    "begun sharded": {"steps": range(CUT), "sharding": "full"},
    "gone on sharded": {"steps": range(CUT, STEPS), "sharding": "full", "start": True},
    "gone on replicated": {"steps": range(CUT, STEPS), "start": True},
}


def work(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    world, start = current_world(), torch.load(f"{folder}/start.pt", weights_only=True)
    found = {}
    for name, job in JOBS.items():
        found[name] = trained(world, **(job | ({"start": start} if "start" in job else {})))
    found["late"] = gradients_that_come_late(world)
    stopped = RecordingIO(stop_at=4 if rank == 0 else None)
    fitted(world, "full", stopped)
    checkpoint = [stopped.checkpoint]
    dist.broadcast_object_list(checkpoint)
    found["fitted"] = dict(fitted(world, "full", RecordingIO(checkpoint[0])).weights)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def gradients_that_come_late(world: World) -> list[Tensor | None]:
    """Means of gradients in many small buckets: one is never set, one only before the last pass, and the order of the
    others changes after the first step has shown one.
    """
    parallel.BUCKET_BYTES = 16
    weights = [nn.Parameter(torch.ones(3)) for _ in range(5)]
    spreading = Replicated(world)
    spreading.watch(weights)
    for order in ([0, 1, 2], [2, 0, 1]):
        for weight in weights:
            weight.grad = None
        (weights[3] * (1 + world.rank)).sum().backward()
        with spreading.last_backward():
            for index in order:
                (weights[index] * (10 * index + world.rank)).sum().backward()
        spreading.finish()
    return [weight.grad for weight in weights]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return trained(World(), range(STEPS))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    torch.save(trained(World(), range(CUT)), folder / "start.pt")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    set_forkserver_preload(["torch.distributed.fsdp", "orchestrator.methods.clip.method"])  # imported once
    multiprocessing.start_processes(work, (port, str(folder)), nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    close = {"rtol": 1e-9, "atol": 1e-11}
    assert found["weights"].keys() == expected["weights"].keys()
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, msg=name, **close)
    assert found["optimizer"].keys() == expected["optimizer"].keys()
    for name, state in expected["optimizer"].items():
        for key, value in state.items():
            torch.testing.assert_close(found["optimizer"][name][key], value, msg=f"{name} {key}", **close)


@pytest.mark.parametrize("job", ["sharded", "gone on sharded", "gone on replicated"])
def test_two_ranks_end_where_one_process_does(ranks, alone, job):
    for rank in ranks:
        assert_same(rank[job], alone)
        norms = rank[job]["norms"]
        assert norms == pytest.approx(alone["norms"][STEPS - len(norms) :], rel=1e-9)


def test_a_sharded_training_with_an_average_stopped_and_resumed_ends_where_one_process_does(ranks):
    expected = fitted(World(), "none", RecordingIO()).weights
    for name, weight in expected.items():
        torch.testing.assert_close(ranks[0]["fitted"][name], weight, msg=name, rtol=1e-9, atol=1e-11)


def test_what_was_begun_sharded_goes_on_alone(ranks, alone):
    assert_same(trained(World(), range(CUT, STEPS), start=ranks[0]["begun sharded"]), alone)


def test_a_sharded_rank_holds_about_half_and_a_replicated_one_everything(ranks):
    assert [rank["gone on replicated"]["share"] for rank in ranks] == [1.0, 1.0]
    assert sum(rank["sharded"]["share"] for rank in ranks) == pytest.approx(1.0, abs=0.01)
    assert ranks[0]["sharded"]["share"] < 0.6


def test_gradients_are_averaged_whenever_they_come_and_not_invented(ranks):
    for rank in ranks:
        assert [None if grad is None else grad.tolist() for grad in rank["late"]] == [
            [0.5] * 3,
            [10.5] * 3,
            [20.5] * 3,
            [1.5] * 3,
            None,
        ]


def test_one_rank_holds_everything_whatever_the_sharding(monkeypatch):
    monkeypatch.setattr(Sharded, "__init__", lambda *_: pytest.fail("sharded alone"))
    assert isinstance(spread(None, World(), "full"), Replicated)
