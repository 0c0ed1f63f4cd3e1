"""The values that pass between loop, method, data and checkpoints.

Position is a number: `samples` seen so far, over all ranks. Schedules, intervals, phases, data order and random numbers are
functions of (seed, purpose, samples), never of ranks, workers or steps done by this process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from orchestrator.data.batch import Batch, Views

__all__ = ["Batch", "Group", "Phase", "Report", "TrainIO", "Views", "World"]


@dataclass(frozen=True)
class World:
    """The ranks of a training and this process's place among them. One process needs no process group."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class Phase:
    """A stretch of training with its own optimisers, ending when `until` samples are seen."""

    name: str
    until: int


@dataclass(frozen=True)
class Group:
    """Parameters that share optimiser settings. None means the stage's setting; `lr_scale` multiplies the schedule."""

    name: str
    parameters: Sequence[tuple[str, nn.Parameter]]
    weight_decay: float | None = None
    lr_scale: float = 1.0


@dataclass(frozen=True)
class Report:
    """One point of the curves: metrics averaged since the last report, keyed by samples seen. The last one has `final` set."""

    samples: int
    metrics: Mapping[str, float]
    final: bool = False
    stopped: str | None = None


class TrainIO(Protocol):
    """The loop's doors to the outside, injected by whoever runs it (a stage under Ray, torchrun, a test)."""

    def save(self, samples: int, state: Mapping[str, Any]) -> None:
        """Keep a checkpoint (rank 0 calls it; `state` is tensors and plain values)."""

    def load(self) -> Mapping[str, Any] | None:
        """The last complete checkpoint's state, the same on all ranks, or None."""

    def report(self, report: Report) -> None:
        """Take a point of the curves (rank 0)."""

    def message(self, level: str, text: str) -> None:
        """A line for the person watching (rank 0)."""

    should_stop: Callable[[], str | None]
