"""Schedule, optimiser, checkpoints as bytes, settings."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from orchestrator.errors import StageError
from orchestrator.training.checkpoint import BackgroundWriter, from_bytes, to_bytes
from orchestrator.training.config import TrainSettings
from orchestrator.training.optim import build_optimizer, clip_gradients, parameters_of, set_learning_rate
from orchestrator.training.schedule import Steps, rate
from orchestrator.training.types import Group

TOTAL, BATCH, WARMUP = 1000, 10, 100


@pytest.mark.parametrize(
    ("samples", "shape", "expected"),
    [
        (0, "cosine", 0.1),
        (90, "cosine", 1.0),
        (100, "cosine", 1.0),
        (550, "cosine", 0.5),
        (990, "cosine", 0.5 * (1 + math.cos(math.pi * 890 / 900))),
        (50, "linear", 0.6),
        (550, "linear", 0.5),
        (1000, "linear", 0.0),
        (990, "constant", 1.0),
        (0, "constant", 0.1),
    ],
)
def test_schedule_follows_samples(samples, shape, expected):
    assert rate(samples, peak=1.0, batch=BATCH, total=TOTAL, warmup=WARMUP, shape=shape) == pytest.approx(expected)


def test_schedule_without_warmup_starts_at_the_peak_and_a_longer_one_never_ends():
    assert rate(0, peak=2.0, batch=BATCH, total=TOTAL, warmup=0, shape="cosine") == 2.0
    assert rate(990, peak=1.0, batch=BATCH, total=TOTAL, warmup=2000, shape="cosine") == 0.5


def test_exponential_schedule_has_the_official_rates():
    shape = Steps(factor=0.9, period=500_000, floor=1e-6, first=1e-6)  # 5,000 steps an epoch

    def at(samples: int, warmup: int) -> float:
        return rate(samples, peak=3e-4, batch=100, total=10**8, warmup=warmup, shape=shape)

    folder = Path(__file__).parent.parent / "reference" / "tldr"
    cases = np.load(folder / "cases.npz")
    found = [at(int(epoch) * 500_000 + 123_400, warmup=0) for epoch in cases["lr_step/inputs/epochs"]]
    assert found == pytest.approx(cases["lr_step/expected/lr"].tolist(), rel=1e-9)
    within = cases["lr_warmup/inputs/steps"] < 5000
    found = [at(100 * int(step), warmup=300_000) for step in cases["lr_warmup/inputs/steps"][within]]
    assert found == pytest.approx(cases["lr_warmup/expected/lr"][within].tolist(), rel=1e-9)


def test_groups_keep_their_decay_and_learning_rate_scale():
    weight, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    groups = [
        Group("w", (("w", weight),), lr_scale=0.5),
        Group("none", ()),
        Group("b", (("b", bias),), weight_decay=0.0),
    ]
    optimizer = build_optimizer(groups, TrainSettings(steps=1, weight_decay=0.3))
    set_learning_rate(optimizer, 0.2)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.1, 0.3), (0.2, 0.0)]
    assert parameters_of(optimizer)[0] is weight
    assert parameters_of(optimizer)[1] is bias


def test_clipping_returns_the_norm_before_and_limits_the_norm_after():
    parameter = nn.Parameter(torch.zeros(4))
    parameter.grad = torch.full((4,), 3.0)
    assert clip_gradients([parameter], None).item() == 6.0
    assert clip_gradients([parameter], 2.0).item() == 6.0
    assert parameter.grad.norm().item() == pytest.approx(2.0, rel=1e-5)


def test_a_checkpoint_is_plain_data_and_returns_equal():
    state = {"a": torch.arange(3), "nested": {"betas": (0.9, 0.98), "names": ["x"], "none": None}}
    returned = from_bytes(to_bytes(state))
    assert torch.equal(returned.pop("a"), state["a"])
    assert returned == {"nested": state["nested"]}


def test_a_checkpoint_that_would_run_code_or_is_cut_short_is_refused():
    with pytest.raises(StageError, match="cannot be read"):
        from_bytes(to_bytes({"evil": print}))
    with pytest.raises(StageError, match="cannot be read"):
        from_bytes(to_bytes({"a": torch.ones(1000)})[:500])


def test_a_checkpoint_of_another_format_is_refused(monkeypatch):
    data = to_bytes({})
    monkeypatch.setattr("orchestrator.training.checkpoint.FORMAT", 99)
    with pytest.raises(StageError, match="another version"):
        from_bytes(data)


def test_background_writes_hold_what_the_state_was_and_come_in_order():
    released, written = threading.Event(), []

    def write(samples: int, data: bytes) -> None:
        released.wait(10)
        written.append((samples, from_bytes(data)["w"].item()))

    weight = torch.tensor(1.0)
    with BackgroundWriter(write) as writer:
        writer.save(10, {"w": weight})
        weight.fill_(2.0)
        released.set()
        writer.save(20, {"w": weight})
    assert written == [(10, 1.0), (20, 2.0)]


def test_a_failed_background_write_is_raised_by_the_next_save_and_at_the_end():
    def write(samples: int, data: bytes) -> None:
        raise OSError("disk full")

    def train(saves: int) -> None:
        with BackgroundWriter(write) as writer:
            for samples in range(saves):
                writer.save(samples, {})

    for saves in (1, 2):
        with pytest.raises(OSError, match="disk full"):
            train(saves)


@pytest.mark.parametrize("lengths", [{}, {"steps": 1, "epochs": 1.0}, {"steps": 1, "samples": 5}])
def test_exactly_one_length_is_needed(lengths):
    with pytest.raises(ValidationError, match="exactly one of steps, samples, epochs"):
        TrainSettings(**lengths)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"steps": -1}, {"batch": 0}, {"learning_rate": 0.0}, {"betas": [0.9]}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        TrainSettings(**({"steps": 1} | wrong))
