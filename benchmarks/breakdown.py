"""Where the time of our training steps goes, by part and by operator.

By part: the clock at the seams of a step. A tower's backward pass begins when the gradient reaches its features: the
autograd engine works on what was computed last first, so the text tower's backward is done before the image tower's
begins. By operator: torch.profiler over a few steps. Meant for one process on a CPU, without gradient caching and
compilation; both cost some time themselves, so speeds are taken from runs without them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from types import TracebackType
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from orchestrator.models.clip import OpenClipModel

SKIP, STEPS = 3, 5
"""Steps before anything is counted; steps that torch.profiler sees, after as many without it."""
TOWERS = {"encode_image": "image tower", "encode_text": "text tower"}
ROWS = 15


class Breakdown:
    """Context manager around a training."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._steps = 0
        self._mark = time.perf_counter()
        self._began = self._mark
        self._backward: list[tuple[str, float]] = []
        self._undo: list[Any] = []
        # the profiler slows steps down, so the parts are timed on the steps before it
        schedule = torch.profiler.schedule(wait=SKIP + STEPS, warmup=1, active=STEPS, repeat=1)
        activities = [torch.profiler.ProfilerActivity.CPU]
        self._profiler = torch.profiler.profile(activities=activities, schedule=schedule)

    def __enter__(self) -> Breakdown:
        for name, tower in TOWERS.items():
            self._replace(OpenClipModel, name, self._timed_tower(getattr(OpenClipModel, name), tower))
        self._replace(torch.Tensor, "backward", self._timed_backward(torch.Tensor.backward))
        self._undo.append(register_optimizer_step_pre_hook(lambda *_: self._lap("rest")).remove)
        self._undo.append(register_optimizer_step_post_hook(lambda *_: self._step_done()).remove)
        self._profiler.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._profiler.__exit__(kind, error, trace)
        for undo in self._undo:
            undo()

    def report(self) -> dict[str, Any]:
        """Seconds a step by part, and the profiler's table."""
        parts = {part: seconds / STEPS for part, seconds in self.seconds.items()}
        table = self._profiler.key_averages().table(
            sort_by="self_cpu_time_total", row_limit=ROWS, max_name_column_width=50
        )
        return {"seconds_a_step": parts, "operators": table}

    def _replace(self, owner: Any, name: str, new: Any) -> None:
        old = getattr(owner, name)
        setattr(owner, name, new)
        self._undo.append(lambda: setattr(owner, name, old))

    def _lap(self, part: str) -> None:
        """The time since the last seam belongs to `part`."""
        now = time.perf_counter()
        if SKIP < self._steps + 1 <= SKIP + STEPS:
            self.seconds[part] += now - self._mark
        self._mark = now

    def _step_done(self) -> None:
        self._lap("optimiser")
        self._steps += 1
        self._profiler.step()
        self._mark = time.perf_counter()

    def _timed_tower(self, encode: Any, tower: str) -> Any:
        def timed(model: OpenClipModel, values: torch.Tensor) -> torch.Tensor:
            self._lap("rest")
            features = encode(model, values)
            self._lap(f"{tower}, forward" if features.requires_grad else f"teacher's {tower}")
            if features.requires_grad:
                features.register_hook(lambda _: self._reached(tower))
            return features

        return timed

    def _reached(self, tower: str) -> None:
        """The backward pass reaches a tower: what came before is over."""
        self._lap(self._backward[-1][0] if self._backward else "loss")
        self._backward.append((f"{tower}, backward", time.perf_counter()))

    def _timed_backward(self, backward: Any) -> Any:
        def timed(*arguments: Any, **options: Any) -> None:
            self._lap("loss")
            self._backward.clear()
            backward(*arguments, **options)
            self._lap(self._backward[-1][0] if self._backward else "loss")

        return timed


def show(profile: dict[str, Any], samples: int) -> None:
    """Print a report of steps of `samples` samples."""
    from rich.console import Console
    from rich.table import Table

    parts = profile["seconds_a_step"]
    total = sum(parts.values())
    table = Table(title=f"where a step of {samples} samples goes, {total:.3f} s", title_justify="left")
    table.add_column("")
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    for part, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        table.add_row(part, f"{1e3 * seconds:,.1f}", f"{seconds / total:.1%}")
    console = Console(width=119)
    console.print(table)
    print(profile["operators"])
