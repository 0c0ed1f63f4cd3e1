"""What happened since the last report: sums over steps, and time.

Sums are kept on the device, in double precision, so that a step waits for nothing; they are read once a report. They
are part of a checkpoint: a report whose window was cut by a crash comes out as if nothing had happened, its times
excepted.

Arithmetic is reported a device: `tflops_per_s`, and on a GPU whose peak is known `mfu`, its share of that peak
(model-FLOPs utilisation, Chowdhery et al. 2022: recomputation is not work done, nor is padding that was cut).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from orchestrator.models.flops import peak_flops
from orchestrator.training.distributed import mean_over_ranks
from orchestrator.training.flops import device_name
from orchestrator.training.types import Batch, Feed, World


class Window:
    """Means of the steps between two reports."""

    def __init__(self, world: World, precision: str = "fp32") -> None:
        self.world = world
        self._peak = peak_flops(device_name(world.device), precision)
        self._clock: tuple[float, float] | None = None
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._steps = 0
        self._tokens = 0
        self._flops = 0.0
        self._elapsed_s = 0.0
        self._waited_s = 0.0

    def begin(self, feed: Feed) -> None:
        """Start the clock of a window's first step; later ones run on."""
        if self._clock is None:
            self._clock = (time.perf_counter(), feed.wait_s)

    def end(self, feed: Feed, batch: Batch) -> None:
        """A step is done: count it, its text tokens (as computed, padding included) and the time."""
        assert self._clock is not None
        started, waited = self._clock
        self._steps += 1
        self._tokens += sum(tokens.numel() for tokens in batch.tokens)
        self._clock = (time.perf_counter(), feed.wait_s)
        self._elapsed_s += self._clock[0] - started
        self._waited_s += self._clock[1] - waited

    def work(self, flops: float) -> None:
        """Floating-point operations of a step on this rank (Method.flops)."""
        self._flops += flops

    def pause(self) -> None:
        """What follows until the next step (a validation) is not training time."""
        self._clock = None

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Scalars of one step, whose means are reported."""
        for name, value in values.items():
            value = value.detach().to(self.world.device, torch.float64)
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def state(self) -> dict[str, Any]:
        """For a checkpoint: the sums, averaged over ranks (on all of them, so that all go on from the same
        numbers).
        """
        self._average()
        return {
            "sums": {name: value.cpu() for name, value in self._sums.items()},
            "counts": dict(self._counts),
            "steps": self._steps,
            "tokens": self._tokens,
            "flops": self._flops,
            "elapsed_s": self._elapsed_s,
            "waited_s": self._waited_s,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's sums."""
        self._sums = {name: value.to(self.world.device) for name, value in state["sums"].items()}
        self._counts = dict(state["counts"])
        self._steps, self._tokens, self._flops = state["steps"], state["tokens"], state["flops"]
        self._elapsed_s, self._waited_s = state["elapsed_s"], state["waited_s"]

    def close(self, batch: int) -> dict[str, float]:
        """The metrics of this window, the same on all ranks, and a new window. `batch` is the global batch."""
        self._average()
        metrics = {name: float(value) / self._counts[name] for name, value in self._sums.items()}
        if self._steps:
            metrics["samples_per_s"] = self._steps * batch / self._elapsed_s
            metrics["tokens_per_s"] = self._tokens * self.world.size / self._elapsed_s
            metrics["data_wait_share"] = self._waited_s / self._elapsed_s
            metrics["tflops_per_s"] = self._flops / self._elapsed_s / 1e12
            if self._peak is not None:
                metrics["mfu"] = self._flops / self._elapsed_s / self._peak
        metrics["memory_bytes"] = _memory_bytes(self.world.device)
        self._reset()
        return metrics

    def _average(self) -> None:
        if self.world.size == 1 or not self._sums:
            return
        means = mean_over_ranks(torch.stack(list(self._sums.values())), self.world)
        self._sums = dict(zip(self._sums, means, strict=True))


def _memory_bytes(device: torch.device) -> float:
    """On a GPU the peak of allocated memory, else what this process holds in RAM now."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    import psutil

    return float(psutil.Process().memory_info().rss)
