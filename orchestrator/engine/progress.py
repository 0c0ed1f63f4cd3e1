"""How far a stage is and how it fares, folded from its events: for the live view, and for the run's record.

The engine reads every event once; what it folds here it writes into the run's state, so that `orch status` on any
machine need not read a month of events again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RATE_WINDOW_S = 20.0
KEPT = ("loss", "samples_per_s", "data_wait_share", "memory_bytes")
"""Metrics of a report that are kept, the last of each."""


@dataclass
class Progress:
    """What the events so far amount to. `rate` is work units a second, over the last seconds.

    Attributes:
        t: time of the last event, Unix seconds.
        data_wait_share: of the last report's time, in [0, 1].
        memory_percent: of the machine's memory in use; `memory_bytes` is the process's (on a GPU: of its memory).
        warning: the last message above "info".
    """

    done: float = 0.0
    total: float | None = None
    unit: str = ""
    phase: str = ""
    loss: float | None = None
    samples_per_s: float | None = None
    data_wait_share: float | None = None
    memory_bytes: float | None = None
    memory_percent: float | None = None
    resumed_at: int | None = None
    warning: str = ""
    t: float | None = None
    rate: float | None = None
    _mark: tuple[float, float] | None = None

    def take(self, event: Mapping[str, Any]) -> None:
        """Take one event."""
        self.t = float(event["t"])
        if event["type"] == "progress":
            self.done, self.total = float(event["done"]), event.get("total")
            self.unit = event.get("unit", "")
            self._measure(self.t)
        elif event["type"] == "report":
            for name in KEPT:
                setattr(self, name, event["metrics"].get(name, getattr(self, name)))
        elif event["type"] == "system":
            self.memory_percent = event["metrics"].get("system/memory_percent", self.memory_percent)
        elif event["type"] == "phase":
            self.phase = str(event["name"])
        elif event["type"] == "resumed":
            self._mark, self.resumed_at = None, event.get("samples")
        elif event["type"] == "message" and event.get("level") != "info":
            self.warning = str(event["text"])

    def _measure(self, t: float) -> None:
        if self._mark is None or self.done < self._mark[1]:
            self._mark = (t, self.done)
        elif t > self._mark[0]:
            self.rate = (self.done - self._mark[1]) / (t - self._mark[0])
            if t - self._mark[0] > RATE_WINDOW_S:
                self._mark = (t, self.done)

    @property
    def share(self) -> float | None:
        """Done of total, in [0, 1]; None while the total is unknown."""
        return min(1.0, self.done / self.total) if self.total else None

    @property
    def left_s(self) -> float | None:
        """Seconds left at the present rate."""
        return (self.total - self.done) / self.rate if self.total and self.rate else None

    def numbers(self) -> str:
        """Rate, loss and time left in few characters."""
        parts = []
        if self.samples_per_s is not None:
            parts.append(f"{self.samples_per_s:,.0f} samples/s")
        elif self.rate:
            parts.append(f"{self.rate:,.0f} {self.unit or 'units'}/s")
        if self.loss is not None:
            parts.append(f"loss {self.loss:.3f}")
        if self.left_s is not None:
            parts.append(f"{duration(self.left_s)} left")
        return "  ".join(parts)

    def record(self) -> dict[str, Any]:
        """As JSON values, for the run's state."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> Progress:
        """What `record` gave; unknown names are left out."""
        return cls(**{name: value for name, value in values.items() if name in cls.__dataclass_fields__})


def duration(seconds: float) -> str:
    """`7 s`, `2:05`, `1:02:05`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes, last = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{last:02d}" if hours else f"{minutes}:{last:02d}"
