"""The values that pass between loop, method, data and checkpoints.

Position is a number: `samples` seen so far, over all ranks. Schedules, intervals, phases, data order and random
numbers are functions of (seed, purpose, samples), never of ranks, workers or steps done by this process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from orchestrator.data.batch import Batch, Views

if TYPE_CHECKING:
    from orchestrator.models.interface import Model
    from orchestrator.training.config import TrainSettings

__all__ = ["Batch", "Feed", "FitSpec", "Group", "LoaderFactory", "Phase", "Report", "TrainIO", "Views", "World"]


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
    """One point of the curves: metrics averaged since the last report, at `samples` seen.

    The last one is `final` and has the weights [whole tensors] that the stage's Model shall have.
    """

    samples: int
    metrics: Mapping[str, float]
    final: bool = False
    stopped: str | None = None
    weights: Mapping[str, Tensor] | None = field(default=None, compare=False, repr=False)


class Feed(Protocol):
    """Endless batches, and how long the loop has waited for them (data/loader.py's `Loader`)."""

    wait_s: float

    def __iter__(self) -> Iterator[Batch]:
        """This rank's part of one global batch after another."""


LoaderFactory = Callable[[int], AbstractContextManager[Feed]]
"""From a position in samples, a multiple of the global batch, to the batches that follow."""


@dataclass(frozen=True)
class FitSpec:
    """What one training is, besides its method and data.

    Attributes:
        settings: the stage's.
        total_samples: length, a multiple of the global batch.
        normalise: uint8 pixels [B, 3, H, W] to the model's normalised floats (Preprocess.normalise).
        validate: a model in eval mode to its figures on held-out samples, the same on all ranks; it draws no random
            numbers. None: no validation.
        epoch_samples: samples of a pass over the data, for a schedule in epochs. None: the whole training is one.
    """

    settings: TrainSettings
    total_samples: int
    normalise: Callable[[Tensor], Tensor]
    validate: Callable[[Model], Mapping[str, float]] | None = None
    epoch_samples: int | None = None


class TrainIO(Protocol):
    """The loop's doors to the outside, injected by whoever runs it (a stage under Ray, torchrun, a test)."""

    def save(self, samples: int, state: Mapping[str, Any]) -> None:
        """Keep a checkpoint (rank 0 calls it). `state` is tensors and plain values that change as soon as this
        returns.
        """

    def kept(self) -> Any:
        """What else of this rank a checkpoint has to hold, in plain values; it comes in the state's `kept`, a list by
        rank.
        """

    def load(self) -> Mapping[str, Any] | None:
        """The last complete checkpoint's state, the same on all ranks, or None."""

    def report(self, report: Report) -> None:
        """Take a point of the curves (rank 0)."""

    def phase(self, name: str) -> None:
        """A phase of the training begins (rank 0)."""

    def message(self, level: str, text: str) -> None:
        """A line for the person watching (rank 0)."""

    def nonfinite(self, samples: int, uids: Sequence[str]) -> None:
        """Keep the ids of a global batch whose loss or gradient was not finite (rank 0)."""

    def should_stop(self) -> str | None:
        """The reason to checkpoint and stop after this step, or None. Any rank's reason stops all."""
