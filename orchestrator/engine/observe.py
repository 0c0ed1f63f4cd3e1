"""Who watches a run: the live view and tracking are observers. None of them can stop or slow a stage.

An observer overrides what it wants to see. One that raises is told to nobody and dropped with a message: work goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.plan.types import Node, Plan
from orchestrator.store.artifacts import Manifest

STATES = ("waiting", "elsewhere", "running", "cached", "done", "failed", "stopped", "skipped")
"""Of a stage. `elsewhere`: another submission is making it; the last five are final."""
FINAL = ("cached", "done", "failed", "stopped", "skipped")


@dataclass(frozen=True)
class StageStatus:
    """A stage at one moment. Times are Unix seconds; `reason` says why it is as it is, for people.

    `attempts` counts all that began in this run; `preemptions` those that made way, `crashes` those that were lost.
    """

    name: str
    kind: str
    fingerprint: str | None
    state: str = "waiting"
    reason: str = ""
    remedy: str = ""
    generation: int | None = None
    attempts: int = 0
    preemptions: int = 0
    crashes: int = 0
    started: float | None = None
    finished: float | None = None

    @property
    def wall_s(self) -> float | None:
        """Seconds from start to end of this stage in this run."""
        return None if self.started is None or self.finished is None else self.finished - self.started


@dataclass(frozen=True)
class RunResult:
    """How a run ended: each stage's status, wall time in seconds, and whether somebody asked it to stop."""

    run: str
    store: str
    stages: Mapping[str, StageStatus]
    manifests: Mapping[str, Manifest]
    wall_s: float
    cancelled: bool = False
    dashboard_url: str | None = None

    @property
    def ok(self) -> bool:
        """Whether every stage has its result."""
        return all(s.state in ("done", "cached") for s in self.stages.values())

    @property
    def failed(self) -> list[StageStatus]:
        """Stages that failed (not those skipped because of them)."""
        return [s for s in self.stages.values() if s.state == "failed"]


class Observer:
    """Base of observers: every hook does nothing."""

    def run_started(self, plan: Plan, run: str, provenance: Mapping[str, Any]) -> None:
        """Before the first stage."""

    def stage_state(self, node: Node, status: StageStatus) -> None:
        """Every change of a stage's state."""

    def stage_started(self, node: Node) -> None:
        """A stage's work begins or goes on here."""

    def stage_event(self, node: Node, event: Mapping[str, Any]) -> None:
        """One event of store/events.py, of this run's stages and of those made elsewhere that it waits for."""

    def stage_finished(self, node: Node, manifest: Manifest, cached: bool, children: bool) -> None:
        """A stage has its result; `children` is False where more stages are cached than are worth a child run each."""

    def stage_failed(self, node: Node, reason: str, stopped: bool) -> None:
        """A stage ended without a result; `stopped` if submitting again goes on."""

    def run_finished(self, ok: bool, stopped: bool) -> None:
        """After the last stage."""

    def tick(self) -> None:
        """A few times a second while the run goes on."""


class Observers:
    """Several observers as one. `say` is told when one is dropped."""

    def __init__(self, observers: Iterable[Any], say: Callable[[str], None]) -> None:
        self._observers = list(observers)
        self._say = say

    def say(self, text: str) -> None:
        """A line for the person who watches."""
        self._say(text)

    def tell(self, hook: str, *args: Any) -> None:
        """Call a hook of all that have it."""
        for observer in list(self._observers):
            method = getattr(observer, hook, None)
            if method is None:
                continue
            try:
                method(*args)
            except Exception as error:
                self._observers.remove(observer)
                self._say(f"{type(observer).__name__} is switched off: {type(error).__name__}: {error}")
