"""Several ranks train what one trains: the same samples in the same order, at float64 tolerance the same weights."""

from __future__ import annotations

import os
import random
import socket

import pytest
import torch
import torch.multiprocessing as multiprocessing
from training_tiny import BATCH, RecordingIO, curves, train

from orchestrator.errors import NotFiniteError
from orchestrator.training.distributed import from_environment
from orchestrator.training.types import World


def work(rank: int, size: int, port: int, options: dict, folder: str) -> None:
    """One rank of a training; its results land in `folder`. The stop request comes to the last rank only."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    if rank < size - 1:
        options = options | {"stop_at": None}
    with from_environment() as world:
        torch.save(results(world, **options), f"{folder}/{rank}.pt")


def results(world: World, checkpoint: bytes | None = None, stop_at: int | None = None, **options) -> dict:
    """What one rank of a training, in double precision, ends with."""
    io = RecordingIO(checkpoint, stop_at)
    torch.set_default_dtype(torch.float64)
    try:
        method, reports, seen = train(io, world=world, dropout=0.0, **options)
    except NotFiniteError as error:
        return {"uids": error.uids}
    finally:
        torch.set_default_dtype(torch.float32)
    return {"weights": method.state_dict(), "curves": curves(reports), "seen": seen, "checkpoint": io.checkpoint}


def free_port() -> int:
    """Below the range from which the system hands out ports by itself: nobody else takes it before we listen."""
    for port in random.SystemRandom().sample(range(20_000, 30_000), 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    pytest.fail("no free port between 20000 and 30000")


def train_on(size: int, folder, **options) -> list[dict]:
    """Results of all ranks of one training, each in its own process."""
    port = free_port()
    multiprocessing.spawn(work, args=(size, port, options, str(folder)), nprocs=size)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]


@pytest.fixture(scope="module")
def alone():
    return results(World())


def assert_same(one: dict, other: dict) -> None:
    for (name, a), b in zip(one["weights"].items(), other["weights"].items(), strict=True):
        torch.testing.assert_close(a, b[1], rtol=0, atol=1e-10, msg=name)


def assert_same_curves(one: list, other: list) -> None:
    assert [samples for samples, _ in one] == [samples for samples, _ in other]
    for (_, a), (_, b) in zip(one, other, strict=True):
        assert a == pytest.approx(b, abs=1e-9)


def test_two_ranks_equal_one_process(alone, tmp_path):
    ranks = train_on(2, tmp_path)
    for rank in ranks:
        assert_same(alone, rank)
        assert_same_curves(alone["curves"], rank["curves"])
    parts = [[rank["seen"][i : i + BATCH // 2] for i in range(0, len(rank["seen"]), BATCH // 2)] for rank in ranks]
    assert [uid for pair in zip(*parts, strict=True) for part in pair for uid in part] == alone["seen"]


def test_ranks_with_gradient_caching_equal_one_process(alone, tmp_path):
    assert_same(alone, train_on(2, tmp_path, micro_batch=4)[0])


def test_one_then_two_then_one_worker_is_the_undisturbed_run(alone, tmp_path):
    first = results(World(), stop_at=7)
    second = train_on(2, tmp_path, stop_at=8, checkpoint=first["checkpoint"])
    assert len(second[0]["seen"]) == len(second[1]["seen"]) == 8 * BATCH // 2
    third = results(World(), checkpoint=second[0]["checkpoint"])
    assert_same(alone, third)
    assert first["seen"] == alone["seen"][: 7 * BATCH]
    assert third["seen"] == alone["seen"][15 * BATCH :]
    points = dict(third["curves"])
    assert_same_curves([point for point in alone["curves"] if point[0] in points], third["curves"])


def test_not_finite_on_any_rank_stops_all_with_the_whole_batch(alone, tmp_path):
    ranks = train_on(2, tmp_path, poison=frozenset({24}))
    assert ranks[0]["uids"] == ranks[1]["uids"]
    assert list(ranks[0]["uids"]) == alone["seen"][24:36]
