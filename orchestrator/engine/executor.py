"""Where jobs run: what the scheduler asks of Ray (ray_executor.py) or of threads (local.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from orchestrator.engine.job import Done, Job


@dataclass(frozen=True)
class Capacity:
    """What an executor can place in all."""

    cpus: float
    gpus: float = 0


class Executor(Protocol):
    """Where jobs run. One job a stage at a time; its end is reported once by `poll`."""

    def capacity(self) -> Capacity:
        """The budget."""

    def submit(self, job: Job) -> None:
        """Begin a job; returns at once."""

    def poll(self, timeout_s: float) -> list[Done]:
        """Jobs that ended since the last call; waits at most `timeout_s` for one."""

    def stop(self, stage: str, reason: str) -> None:
        """Make the stage's `should_stop` say `reason`."""

    def kill(self, stage: str) -> None:
        """End the job's process; `poll` reports it as died."""

    def close(self) -> None:
        """End all that is left."""
