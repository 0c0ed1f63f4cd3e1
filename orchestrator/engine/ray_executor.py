"""Jobs as named tasks of warm Ray actors.

An actor takes a second to come up and then serves one stage after another of the same needs; its task bears the
stage's name, so that the stage is found in Ray's dashboard. A one-worker stage computes in its actor, which reserves
the stage's CPUs and GPUs. A stage of several workers only drives Ray Train from its actor, which reserves nothing: the
trainer reserves for its workers. Idle actors give way when what they reserve is needed, and after a while in any case.
An actor that is told to end (SIGTERM) or whose node is being drained serves no further stage.

The local cluster may end under a run (its raylet or GCS server killed): then a fresh one takes its place, and what was
at work is reported as died. Ray would let this process wait a minute for the dead one, and then end it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayError, RayTaskError, WorkerCrashedError

from orchestrator.engine.executor import Capacity
from orchestrator.engine.job import Done, Job, WorkerResult
from orchestrator.errors import OrchError
from orchestrator.io.environment import Environment
from orchestrator.plan.types import Resources
from orchestrator.stages.preemption import PREEMPTED, Notice, draining_nodes

IDLE_S = 20.0
"""How long an idle actor is kept."""
CAPACITY_EVERY_S = 2.0
DRAIN_EVERY_S = 2.0
"""How often the cluster is asked whether nodes are being drained."""
ANSWER_S = 0.5
"""How long an actor may take to say where it is; one that is not placed yet is asked again later."""
WORKER_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # the ranks look for themselves, and checkpoints are not Ray's
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Ray Train's settings, read where a stage builds its trainer."""


class StageWorker:
    """The actor. `run` and `stop` are called at the same time, from different threads."""

    def __init__(self, environment: Environment, directory: str) -> None:
        os.environ.update(WORKER_ENVIRONMENT)
        environment.enter()
        if os.path.isdir(directory):  # paths in messages and recipes mean what they mean to the person who submitted
            os.chdir(directory)
        self._stops: dict[str, str] = {}
        self._notice = Notice.installed()

    def run(self, job: Job) -> WorkerResult:
        """Do a job in this process."""
        from orchestrator.engine.worker import run_stage

        with self._notice.heeded() as told:
            return run_stage(job, lambda: self._stops.get(job.attempt) or told())

    def stop(self, attempt: str, reason: str) -> None:
        """Make that attempt's `should_stop` say `reason`, whether it has begun or not."""
        self._stops[attempt] = reason

    def node(self) -> str:
        """Id of the Ray node this process is on."""
        return ray.get_runtime_context().get_node_id()


@dataclass(frozen=True)
class _Needs:
    """What an actor reserves; warm actors are shared between stages of equal needs."""

    cpus: float
    gpus: float
    memory_bytes: int | None
    threads: int

    @classmethod
    def of(cls, resources: Resources) -> _Needs:
        if resources.workers > 1:
            return cls(0, 0, None, resources.threads)
        return cls(resources.cpus, resources.gpus, resources.memory_bytes, resources.threads)


@dataclass
class _Slot:
    """One warm actor, and the job it does. `node` is asked for once a node is being drained."""

    actor: Any
    needs: _Needs
    job: Job | None = None
    future: Any = None
    idle_since: float = 0.0
    node: Any = None
    leaving: bool = False


class RayExecutor:
    """Executor (scheduler.py) on the Ray cluster this process is connected to.

    Args:
        environment: variables the workers get beside Ray Train's settings.
        lives: whether the cluster is still there; looked at before anything is asked of it.
        renew: connects this process to another where it is not.
    """

    def __init__(
        self,
        environment: Environment | None = None,
        lives: Callable[[], bool] = lambda: True,
        renew: Callable[[], None] = lambda: None,
    ) -> None:
        self._environment = environment or Environment()
        self._lives, self._renew = lives, renew
        self._slots: list[_Slot] = []
        self._capacity = Capacity(0)
        self._capacity_until = 0.0
        self._next_drain_look = 0.0

    def capacity(self) -> Capacity:
        if time.monotonic() > self._capacity_until and self._lives():
            total = ray.cluster_resources()
            self._capacity = Capacity(total.get("CPU", 0.0), total.get("GPU", 0.0))
            self._capacity_until = time.monotonic() + CAPACITY_EVERY_S
        return self._capacity

    def submit(self, job: Job) -> None:
        needs = _Needs.of(job.resources)
        slot = next((s for s in self._slots if s.job is None and s.needs == needs), None)
        if slot is None:
            self._make_room(job.resources)
            slot = _Slot(self._actor(needs), needs)
            self._slots.append(slot)
        slot.job = job
        slot.future = slot.actor.run.options(name=job.stage).remote(job)

    def poll(self, timeout_s: float) -> list[Done]:
        if not self._lives():
            return self._renewed()
        self._drop_idle()
        self._leave_draining_nodes()
        busy = {slot.future: slot for slot in self._slots if slot.future is not None}
        if not busy:
            time.sleep(timeout_s)
            return []
        ready, _ = ray.wait(list(busy), num_returns=1, timeout=timeout_s)
        return [self._done(busy[future]) for future in ready]

    def stop(self, stage: str, reason: str) -> None:
        slot = self._slot(stage)
        if slot is not None and slot.job is not None:
            slot.actor.stop.options(name=f"stop {stage}").remote(slot.job.attempt, reason)

    def kill(self, stage: str) -> None:
        slot = self._slot(stage)
        if slot is not None:
            ray.kill(slot.actor)

    def close(self) -> None:
        for slot in self._slots:
            ray.kill(slot.actor)
        self._slots.clear()

    def _renewed(self) -> list[Done]:
        """Go on in another cluster; the jobs that ended with the old one."""
        lost = [Done(slot.job.stage, died="the Ray cluster ended") for slot in self._slots if slot.job is not None]
        self._slots.clear()
        self._renew()
        self._capacity_until = 0.0
        return lost

    def _actor(self, needs: _Needs) -> Any:
        remote = ray.remote(StageWorker).options(
            num_cpus=needs.cpus,
            num_gpus=needs.gpus,
            memory=needs.memory_bytes,
            max_concurrency=2,
            max_restarts=0,
            max_task_retries=0,
        )
        return remote.remote(self._environment, os.getcwd())

    def _make_room(self, wanted: Resources) -> None:
        """End idle actors, longest idle first, until what is wanted fits beside what is reserved."""
        capacity = self.capacity()
        for slot in sorted(self._slots, key=lambda s: s.idle_since):
            cpus = sum(s.needs.cpus if s.job is None else s.job.resources.cpus for s in self._slots)
            gpus = sum(s.needs.gpus if s.job is None else s.job.resources.gpus for s in self._slots)
            if cpus + wanted.cpus <= capacity.cpus + 1e-6 and gpus + wanted.gpus <= capacity.gpus + 1e-6:
                return
            if slot.job is None:
                self._drop(slot)

    def _drop_idle(self) -> None:
        for slot in list(self._slots):
            if slot.job is None and time.monotonic() - slot.idle_since > IDLE_S:
                self._drop(slot)

    def _leave_draining_nodes(self) -> None:
        """Ask the stages on nodes that are being drained to make way; idle actors there end."""
        if time.monotonic() < self._next_drain_look:
            return
        self._next_drain_look = time.monotonic() + DRAIN_EVERY_S
        draining = draining_nodes()
        for slot in [slot for slot in self._slots if draining and not slot.leaving]:
            slot.node = slot.node or slot.actor.node.remote()
            placed, _ = ray.wait([slot.node], timeout=ANSWER_S)
            if not placed or _node(slot) not in draining:
                continue
            slot.leaving = True
            if slot.job is None:
                self._drop(slot)
            else:
                self.stop(slot.job.stage, PREEMPTED)

    def _drop(self, slot: _Slot) -> None:
        ray.kill(slot.actor)
        self._slots.remove(slot)

    def _slot(self, stage: str) -> _Slot | None:
        return next((s for s in self._slots if s.job is not None and s.job.stage == stage), None)

    def _done(self, slot: _Slot) -> Done:
        """Take a slot's result. A dead actor leaves the pool; a live one is idle."""
        assert slot.job is not None
        stage, future = slot.job.stage, slot.future
        slot.job, slot.future, slot.idle_since = None, None, time.monotonic()
        try:
            result = ray.get(future, timeout=60)
            if slot.leaving or (result.outcome is not None and result.outcome.stopped == PREEMPTED):
                self._drop(slot)
            return Done(stage, result)
        except OutOfMemoryError as error:
            remedy = "lower its batch or micro_batch, or raise resources.memory_gb"
            self._drop(slot)
            return Done(stage, WorkerResult(None, error=OrchError(f"out of memory: {_first_line(error)}", remedy)))
        except (RayActorError, WorkerCrashedError, GetTimeoutError) as error:
            self._drop(slot)
            if getattr(error, "actor_init_failed", False):  # it would fail again
                return Done(stage, WorkerResult(None, error=OrchError(f"its worker cannot start: {error}")))
            return Done(stage, died=_first_line(error), preempted=bool(getattr(error, "preempted", False)))
        except (RayTaskError, RayError) as error:  # a bug of ours: run_stage does not raise
            self._drop(slot)
            return Done(stage, WorkerResult(None, error=RuntimeError(str(error))))


def _node(slot: _Slot) -> str | None:
    """Where an actor that has answered is; None where it has died meanwhile."""
    try:
        return ray.get(slot.node)
    except RayError:
        return None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
