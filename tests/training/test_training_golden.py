"""Golden losses: the same settings give the same training until a person raises LOOP_VERSION.

`python tests/training/test_training_golden.py` prints the losses for golden.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from training_tiny import RecordingIO

from orchestrator.data.preprocess import Preprocess
from orchestrator.methods.clip.config import Clip
from orchestrator.methods.clip.method import ClipMethod
from orchestrator.models.catalog import resolve
from orchestrator.models.open_clip_bridge import create
from orchestrator.training import LOOP_VERSION
from orchestrator.training.config import TrainSettings
from orchestrator.training.loop import fit
from orchestrator.training.method import Build
from orchestrator.training.types import Batch, FitSpec, World

GOLDEN = Path(__file__).with_name("golden.json")
BATCH, STEPS, START, END = 16, 20, 49406, 49407


class Pictures:
    """Sixty-four squares of some colour in some corner, each with words of its own."""

    wait_s = 0.0

    def __init__(self, start: int) -> None:
        self.start = start

    def __enter__(self) -> Pictures:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def __iter__(self) -> Iterator[Batch]:
        position = self.start
        while True:
            numbers = [(37 * (position + place)) % 64 for place in range(BATCH)]
            position += BATCH
            images = torch.zeros(BATCH, 3, 32, 32, dtype=torch.uint8)
            for image, number in zip(images, numbers, strict=True):
                colour = torch.tensor([(number % 4) * 80, (number // 4 % 4) * 80, 120], dtype=torch.uint8)
                top, left = 16 * (number // 16 % 2), 16 * (number // 32)
                image[:, top : top + 16, left : left + 16] = colour.view(3, 1, 1)
            words = [[START, 300 + n % 4, 400 + n // 4 % 4, 500 + n // 16, END] for n in numbers]
            yield Batch((images,), (torch.tensor(words),), tuple(f"{n:032x}" for n in numbers))


def losses() -> list[float]:
    """Loss of each step."""
    settings = TrainSettings(steps=STEPS, batch=BATCH, warmup_steps=5, report_every=1)
    total = settings.total_samples(64)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    build = Build(create(resolve("tiny"), seed=0), None, total, BATCH, World(), seed=0)
    spec = FitSpec(settings, total, Preprocess(32).normalise)
    try:
        reports = list(fit(spec, ClipMethod(Clip(), build), Pictures, World(), RecordingIO()))
    finally:
        torch.set_num_threads(threads)
    return [report.metrics["loss"] for report in reports]


def test_golden_losses_stand_for_this_version_of_the_loop():
    """They hold on any CPU to single precision's rounding."""
    golden = json.loads(GOLDEN.read_text())
    assert str(LOOP_VERSION) in golden, "LOOP_VERSION was raised: add its losses, printed by this file, to golden.json"
    assert losses() == pytest.approx(golden[str(LOOP_VERSION)], rel=1e-4)


if __name__ == "__main__":
    print(json.dumps({str(LOOP_VERSION): [round(loss, 7) for loss in losses()]}))
