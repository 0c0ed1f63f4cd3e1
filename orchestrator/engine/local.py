"""An executor of threads in this process: for tests and for debugging a stage, without Ray.

Threads cannot be ended: `kill` only forgets the job. Output is not captured and thread counts are the process's.
"""

from __future__ import annotations

import queue
import threading

from orchestrator.engine.executor import Capacity
from orchestrator.engine.job import Done, Job
from orchestrator.engine.worker import run_stage


class LocalExecutor:
    """Jobs as threads of this process."""

    def __init__(self, cpus: float = 2, gpus: float = 0) -> None:
        self._capacity = Capacity(cpus, gpus)
        self._ended: queue.Queue[Done] = queue.Queue()
        self._stops: dict[str, str] = {}
        self._current: dict[str, str] = {}

    def capacity(self) -> Capacity:
        return self._capacity

    def submit(self, job: Job) -> None:
        self._current[job.stage] = job.attempt
        threading.Thread(target=self._work, args=(job,), name=job.stage, daemon=True).start()

    def poll(self, timeout_s: float) -> list[Done]:
        try:
            ended = [self._ended.get(timeout=timeout_s)]
        except queue.Empty:
            return []
        while not self._ended.empty():
            ended.append(self._ended.get())
        return ended

    def stop(self, stage: str, reason: str) -> None:
        self._stops[self._current[stage]] = reason

    def kill(self, stage: str) -> None:
        if self._current.pop(stage, None) is not None:
            self._ended.put(Done(stage, died="killed"))

    def close(self) -> None:
        self._current.clear()

    def _work(self, job: Job) -> None:
        result = run_stage(job, lambda: self._stops.get(job.attempt), capture=False)
        if self._current.get(job.stage) == job.attempt:
            del self._current[job.stage]
            self._ended.put(Done(job.stage, result))
