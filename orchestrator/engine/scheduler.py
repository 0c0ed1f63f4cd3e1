"""Runs a plan: the ready queue, side by side within a budget, with leases, retries, stops and publication.

Plain Python that drives an `Executor`; it knows neither Ray nor torch, and everything it does is one pass of `_step`.
A stage is taken up when its inputs are finished: its artifact may be there already; another submission may be making
it (then its result is awaited); else its lease is acquired and a `Job` submitted. Each attempt has a lease generation
of its own, so that what a lost worker still writes can never be mistaken. Only a live lease is published. A failed
stage stops nothing but what needs it. While the store does not answer, decisions wait (`Policy.patience_s`), also the
publication of what is made already; then the stage fails, and submitting again goes on.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from orchestrator.engine.bookkeeping import Bookkeeping
from orchestrator.engine.executor import Capacity, Executor
from orchestrator.engine.job import Done, Job, JobInput, WorkerResult
from orchestrator.engine.observe import FINAL, Observers, RunResult, StageStatus
from orchestrator.engine.publish import PATIENCE_S, manifest_of
from orchestrator.engine.tail import Tail
from orchestrator.errors import LeaseLostError, OrchError, StoreAway, UserError, WorkerLost
from orchestrator.plan.types import Node, Plan, Resources
from orchestrator.stages.base import Outcome
from orchestrator.stages.preemption import PREEMPTED
from orchestrator.store.artifacts import Manifest, Store
from orchestrator.store.checkpoints import CheckpointStore
from orchestrator.store.events import compact_events
from orchestrator.store.leases import Held, Lease, acquire
from orchestrator.store.logs import compact_logs
from orchestrator.store.parts import Parts
from orchestrator.store.process import this_process
from orchestrator.store.runs import Run

MAX_CACHED_CHILDREN = 50
"""Above so many cached stages tracking writes one table instead of a child run each."""


@dataclass(frozen=True)
class Policy:
    """Intervals in seconds and budgets. Retries after crashes are each stage's own setting."""

    poll_s: float = 0.2
    elsewhere_s: float = 2.0
    """How often a stage that another submission makes is looked at."""
    grace_s: float = 60.0
    """From the request to stop until the process is ended."""
    max_preemptions: int = 100
    cancel_file_s: float = 2.0
    beat_s: float = 10.0
    """How often the run's state is written though nothing has changed: with its stages' progress, a sign of life."""
    patience_s: float = PATIENCE_S
    """How long a stage waits for a store that does not answer (each look has the retries of `io` besides)."""
    away_s: float = 5.0
    """Between two looks at a store that does not answer."""
    lease_ttl_s: float = 30.0
    """How long a submitter may be silent (stopped, cut off from the store) until another may take its stages over."""


@dataclass
class _Attempt:
    """A stage at work here."""

    job: Job
    lease: Lease
    need: Capacity
    since: float
    stop: str | None = None
    stop_since: float = 0.0


@dataclass(frozen=True)
class _Made:
    """A stage whose files are in the store and whose manifest could not be created yet."""

    attempt: _Attempt
    manifest: Manifest


class Scheduler:
    """One run of one plan. Call `run` once; `cancel` may be called from a signal handler."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        executor: Executor,
        run: Run,
        observers: Observers,
        policy: Policy = Policy(),
    ) -> None:
        self.plan, self.store, self.executor, self.run_files = plan, store, executor, run
        self.observers, self.policy = observers, policy
        self.tail = Tail(store)
        self.status = {n.name: StageStatus(n.name, n.kind, n.fingerprint) for n in plan.nodes.values()}
        self.manifests: dict[str, Manifest] = {}
        self._attempts: dict[str, _Attempt] = {}
        self._made: dict[str, _Made] = {}
        self._untidy: list[_Attempt] = []
        self._books = Bookkeeping(observers.say, policy.away_s)
        self._patience_ends: dict[str, float] = {}
        self._made_way: dict[str, Capacity] = {}
        self._next_look: dict[str, float] = {}
        self._cancels = 0
        self._dirty = True
        self._next_cancel_look = 0.0
        self._next_beat = 0.0

    def cancel(self) -> None:
        """Once: running stages checkpoint and stop. Twice: they are ended now."""
        self._cancels += 1

    def run(self) -> RunResult:
        """Run until every stage is final."""
        started = time.monotonic()
        self._adopt_finished()
        try:
            while not all(s.state in FINAL for s in self.status.values()):
                self._step()
        finally:
            self.executor.close()
            self._tell_events(now=True)
            self._tidy(now=True)
            made = [made.attempt for made in self._made.values()]
            for attempt in (*self._attempts.values(), *made, *self._untidy):
                attempt.lease.release()
            self._save(now=True)
        return RunResult(
            self.run_files.id,
            self.store.url,
            dict(self.status),
            dict(self.manifests),
            time.monotonic() - started,
            cancelled=self._cancels > 0,
        )

    def _step(self) -> None:
        self._look_for_cancel()
        if self._cancels:
            self._cancel_stages()
        else:
            for node in self.plan.nodes.values():
                self._consider(node)
        for done in self.executor.poll(self.policy.poll_s):
            self._ended(done)
        for name in list(self._made):
            self._publish_if_due(self.plan.nodes[name])
        self._tidy()
        self._watch()
        self._tell_events()
        self.observers.tell("tick")
        self._save()

    # Taking up stages.

    def _adopt_finished(self) -> None:
        """Mark every stage whose artifact is there, in one go, so that observers know how many they are."""
        try:
            found = {n.name: self.store.find(n.kind, n.fingerprint) for n in self.plan.nodes.values() if n.fingerprint}
        except OrchError:
            return  # each stage is looked at again when its turn comes, and says then what is wrong
        cached = {name: manifest for name, manifest in found.items() if manifest is not None}
        children = len(cached) <= MAX_CACHED_CHILDREN
        for name, manifest in cached.items():
            self._finished(self.plan.nodes[name], manifest, cached=True, children=children)

    def _consider(self, node: Node) -> None:
        """Take the stage up if it can be now."""
        status = self.status[node.name]
        if status.state not in ("waiting", "elsewhere") or time.monotonic() < self._next_look.get(node.name, 0.0):
            return
        lost = [name for name in node.upstream if self.status[name].state in ("failed", "skipped", "stopped")]
        if lost:
            self._set(node, state="skipped", reason=f"needs {lost[0]}")
            return
        if any(name not in self.manifests for name in node.upstream):
            return
        try:
            need = self._need(node)
            if need is not None:
                self._take_up(node, need)
        except StoreAway as error:
            if not self._waits_for_store(node, error):
                self._failed(node, error)
        except Exception as error:
            self._failed(node, error)

    def _waits_for_store(self, node: Node, error: StoreAway) -> bool:
        """Whether there is patience left for a store that does not answer; if so, the stage says what it waits for."""
        now = time.monotonic()
        first = node.name not in self._patience_ends
        ends = self._patience_ends.setdefault(node.name, now + self.policy.patience_s)
        if now + self.policy.away_s > ends:
            return False
        self._next_look[node.name] = now + self.policy.away_s
        if first:
            self._set(node, reason=f"waits for the store: {error.message}")
        return True

    def _need(self, node: Node) -> Capacity | None:
        """What the stage takes of the budget, or None while that is not free."""
        capacity, wanted = self.executor.capacity(), node.resources
        if (had := self._made_way.get(node.name)) is not None:  # its node may be gone: the executor waits for another
            capacity = Capacity(max(capacity.cpus, had.cpus), max(capacity.gpus, had.gpus))
        if wanted.gpus > capacity.gpus:
            raise UserError(
                f"stage '{node.name}' asks for {wanted.gpus:g} GPUs, the cluster has {capacity.gpus:g}",
                f"use a cluster that has them, or `-s stages.{node.name}.resources.gpus={capacity.gpus:g}`",
            )
        if not capacity.cpus:
            raise OrchError("the Ray cluster has no CPUs left: it may be gone", "submit again to go on")
        need = Capacity(min(wanted.cpus, capacity.cpus), wanted.gpus)
        used = [attempt.need for attempt in self._attempts.values()]
        free_cpus = capacity.cpus - sum(n.cpus for n in used)
        free_gpus = capacity.gpus - sum(n.gpus for n in used)
        return need if need.cpus <= free_cpus + 1e-6 and need.gpus <= free_gpus + 1e-6 else None

    def _take_up(self, node: Node, need: Capacity) -> None:
        assert node.fingerprint is not None
        manifest = self.store.find(node.kind, node.fingerprint)
        if manifest is not None:
            self._finished(node, manifest, cached=True)
            return
        intention = f"{self.run_files.id} {node.name} {self.status[node.name].attempts + 1}"
        lease = acquire(self.store, node.fingerprint, self.policy.lease_ttl_s, id=intention)
        if isinstance(lease, Held):
            self._await(node, lease)
            return
        try:
            manifest = self.store.find(node.kind, node.fingerprint)  # finished between the look and the lease
            if manifest is None:
                self._submit(node, lease, need)
            else:
                self._finished(node, manifest, cached=True)
        finally:
            if node.name not in self._attempts:
                lease.release()

    def _await(self, node: Node, held: Held) -> None:
        """Somebody else is making it, in this process or another: look again later."""
        assert node.fingerprint is not None
        self._next_look[node.name] = time.monotonic() + self.policy.elsewhere_s
        self.tail.follow(node.name, node.fingerprint)
        self._patience_ends.pop(node.name, None)
        reason = f"process {held.by.pid} on {held.by.host} is making it; its result will be used"
        if (self.status[node.name].state, self.status[node.name].reason) != ("elsewhere", reason):
            self._set(node, state="elsewhere", reason=reason)

    def _submit(self, node: Node, lease: Lease, need: Capacity) -> None:
        resources = replace(node.resources, cpus=need.cpus)
        job = self._job(node, lease, resources)
        attempts = self.status[node.name].attempts + 1
        reason = self.status[node.name].reason if attempts > 1 else ""
        if need.cpus < node.resources.cpus:
            reason = f"with {need.cpus:g} of the {node.resources.cpus:g} CPUs it asks for"
        self.executor.submit(job)
        self._patience_ends.pop(node.name, None)
        self._attempts[node.name] = _Attempt(job, lease, need, time.monotonic())
        self.tail.follow(node.name, job.fingerprint)
        began = self.status[node.name].started or time.time()
        self._set(node, state="running", reason=reason, generation=lease.generation, attempts=attempts, started=began)
        self.observers.tell("stage_started", node)

    def _job(self, node: Node, lease: Lease, resources: Resources) -> Job:
        assert node.fingerprint is not None
        inputs, external = {}, {}
        for i in node.inputs:
            if i.stage is None:
                external[i.key] = str(i.external)
            else:
                up = self.plan.nodes[i.stage]
                inputs[i.key] = JobInput(up.kind, str(up.fingerprint), i.output, i.stage)
        kind = type(node.config)
        return Job(
            run=self.run_files.id,
            stage=node.name,
            kind=node.kind,
            fingerprint=node.fingerprint,
            generation=lease.generation,
            attempt=f"{lease.generation:04d}-{self.run_files.id}",
            config_class=f"{kind.__module__}:{kind.__qualname__}",
            config=node.config.model_dump_json(by_alias=True),
            inputs=inputs,
            external=external,
            sources=node.external,
            resources=resources,
            store=self.store.url,
        )

    # Ends.

    def _ended(self, done: Done) -> None:
        node, attempt = self.plan.nodes[done.stage], self._attempts.pop(done.stage)
        self._tell_events(done.stage, now=True)
        try:
            if done.result is None:
                self._died(node, attempt, done)
            elif attempt.lease.lost.is_set():
                self._taken_over(node)
            elif isinstance(done.result.error, WorkerLost):
                lost_worker = done.result.error
                self._died(node, attempt, Done(node.name, None, lost_worker.message, lost_worker.preempted))
            elif isinstance(done.result.error, StoreAway) and self._goes_on_later(node, attempt, done.result.error):
                pass
            elif done.result.error is not None:
                self._failed(node, done.result.error)
            elif done.result.outcome is not None and done.result.outcome.stopped is not None:
                self._gave_up(node, attempt, done.result.outcome)
            else:
                self._made[node.name] = _Made(attempt, self._manifest(node, attempt.job, done.result))
                self._next_look[node.name] = 0.0
        except Exception as error:
            self._failed(node, error)
        finally:
            if node.name not in self._made:
                attempt.lease.release()

    def _manifest(self, node: Node, job: Job, result: WorkerResult) -> Manifest:
        return manifest_of(node, job, result, upstream=self.manifests, earlier_wall_s=self.tail.earlier_s(node.name))

    def _publish_if_due(self, node: Node) -> None:
        """Make the attempt's files the artifact; later, as long as there is patience, if the store does not answer."""
        if time.monotonic() < self._next_look.get(node.name, 0.0):
            return
        made = self._made[node.name]
        try:
            published = self.store.commit(made.manifest, check=made.attempt.lease.check)
            self._finished(node, published, cached=False)
        except LeaseLostError:
            self._taken_over(node)
        except StoreAway as error:
            if not self._cancels and self._waits_for_store(node, error):
                return
            self._failed(node, error)
        except Exception as error:
            self._failed(node, error)
        del self._made[node.name]
        if self.status[node.name].state == "done":
            self._untidy.append(made.attempt)
        else:
            made.attempt.lease.release()

    def _tidy(self, now: bool = False) -> None:
        """Clear the checkpoints of published stages and pack what they wrote, then release their leases.

        What stays behind costs space and requests, nothing else: who was overtaken while it published touches nothing.
        (Whoever takes the lease later finds the manifest and begins nothing.)
        """
        while self._untidy and self._books.attempt(
            "tidying up after a stage", partial(self._tidy_up, self._untidy[0]), now
        ):
            self._untidy.pop(0).lease.release()

    def _tidy_up(self, attempt: _Attempt) -> None:
        job, storage = attempt.job, self.store.storage
        with suppress(LeaseLostError):
            attempt.lease.check()
            CheckpointStore(storage, job.fingerprint, job.generation).clear()
            Parts(storage, job.fingerprint).clear()
            compact_events(storage, job.fingerprint)
            compact_logs(storage, job.fingerprint)

    def _died(self, node: Node, attempt: _Attempt, done: Done) -> None:
        """A worker process ended under its stage: go on from the last checkpoint, within the budgets."""
        if attempt.stop is not None:
            self._stopped(node, attempt.stop)
            return
        if done.preempted:
            self._preempted(node, attempt, f"preempted ({done.died}), goes on from its last checkpoint")
            return
        crashes = self.status[node.name].crashes + 1
        if crashes > getattr(node.config, "retries", 0):
            times = "once" if crashes == 1 else f"{crashes} times"
            raise OrchError(
                f"its worker process died {times}: {done.died}",
                "it may have run out of memory: lower the batch or `micro_batch`; submitting again goes on",
            )
        reason = f"its worker died ({done.died}); going on from the last checkpoint"
        self._set(node, state="waiting", reason=reason, crashes=crashes)

    def _goes_on_later(self, node: Node, attempt: _Attempt, error: StoreAway) -> bool:
        """Whether a stage under which the store was away is taken up again: as after a crash, within `retries`."""
        crashes = self.status[node.name].crashes + 1
        if attempt.stop is not None or self._cancels or crashes > getattr(node.config, "retries", 0):
            return False
        self._next_look[node.name] = time.monotonic() + self.policy.away_s
        reason = f"the store was away ({error.message}); going on from the last checkpoint"
        self._set(node, state="waiting", reason=reason, crashes=crashes)
        return True

    def _gave_up(self, node: Node, attempt: _Attempt, outcome: Outcome) -> None:
        """A stage obeyed a stop request: ours, or its own machine's, which is no reason to end the run."""
        reason = attempt.stop or outcome.stopped
        if reason == PREEMPTED:
            samples = outcome.summary.get("samples")
            where = ", goes on" if samples is None else f" at {samples:,} samples, goes on from there"
            self._preempted(node, attempt, f"preempted{where}")
        else:
            self._stopped(node, str(reason))

    def _preempted(self, node: Node, attempt: _Attempt, reason: str) -> None:
        """The stage made way for somebody else, cleanly or not: no failure, so its budget is a large one."""
        times = self.status[node.name].preemptions + 1
        if times > self.policy.max_preemptions:
            raise OrchError(f"it was preempted {times} times", "submitting again goes on")
        self._made_way[node.name] = attempt.need
        self._set(node, state="waiting", reason=reason, preemptions=times)

    def _taken_over(self, node: Node) -> None:
        self._patience_ends.pop(node.name, None)
        self._next_look.pop(node.name, None)
        self._set(node, state="waiting", reason="another submission has taken it over")

    def _stopped(self, node: Node, reason: str) -> None:
        if reason == "lease lost":
            self._taken_over(node)
        else:
            self._set(node, state="stopped", reason=reason, remedy="submitting again goes on", finished=time.time())
            self.observers.tell("stage_failed", node, reason, True)

    def _finished(self, node: Node, manifest: Manifest, cached: bool, children: bool = True) -> None:
        self._tell_events(node.name, now=True)
        self.tail.leave(node.name)
        self.manifests[node.name] = manifest
        self._set(node, state="cached" if cached else "done", reason="", finished=time.time())
        self.observers.tell("stage_finished", node, manifest, cached, children)

    def _failed(self, node: Node, error: Exception) -> None:
        """Nothing that a runner raises is tried again: it would be raised again."""
        if isinstance(error, OrchError):
            message, remedy = error.message, error.remedy
        else:
            message, remedy = str(error), f"`orch logs {self.run_files.id} {node.name}` shows where"
        self._set(node, state="failed", reason=message, remedy=remedy, finished=time.time())
        self.observers.tell("stage_failed", node, message, False)

    # Stops.

    def _watch(self) -> None:
        """Ask stages to stop that have lost their lease or their time, and end those that do not listen."""
        now = time.monotonic()
        for name, attempt in self._attempts.items():
            if attempt.stop is None:
                limit = getattr(self.plan.nodes[name].config, "time_limit_minutes", None)
                if attempt.lease.lost.is_set():
                    self._stop(name, "lease lost")
                elif limit is not None and now - attempt.since > limit * 60:
                    self._stop(name, "time limit")
            elif now - attempt.stop_since > self.policy.grace_s:
                attempt.stop_since = float("inf")
                self.executor.kill(name)

    def _stop(self, name: str, reason: str) -> None:
        attempt = self._attempts[name]
        attempt.stop, attempt.stop_since = reason, time.monotonic()
        self.executor.stop(name, reason)

    def _look_for_cancel(self) -> None:
        now = time.monotonic()
        if not self._cancels and now >= self._next_cancel_look:
            self._next_cancel_look = now + self.policy.cancel_file_s

            def look() -> None:
                if self.run_files.cancelled():
                    self._cancels = 1

            self._books.attempt("looking for a request to stop", look)

    def _cancel_stages(self) -> None:
        for name, attempt in list(self._attempts.items()):
            if attempt.stop is None:
                self._stop(name, "cancelled")
            if self._cancels > 1 and attempt.stop_since != float("inf"):
                attempt.stop_since = float("inf")
                self.executor.kill(name)
        for name, status in self.status.items():
            if status.state not in FINAL and name not in self._attempts and name not in self._made:
                self._set(self.plan.nodes[name], state="stopped", reason="cancelled", finished=time.time())

    # Keeping and telling.

    def _set(self, node: Node, **changes: Any) -> None:
        self.status[node.name] = replace(self.status[node.name], **{"remedy": "", **changes})
        self._dirty = True
        self.observers.tell("stage_state", node, self.status[node.name])

    def _tell_events(self, stage: str | None = None, now: bool = False) -> None:
        """Hand on what the workers wrote: of all stages that are due, or of one at once."""

        def tell() -> None:
            for name, event in self.tail.poll(stage):
                self.observers.tell("stage_event", self.plan.nodes[name], event)

        self._books.attempt("reading the stages' events", tell, now)

    def _save(self, now: bool = False) -> None:
        """The run's state, when it has changed and as a sign of life."""
        if self._dirty or time.monotonic() >= self._next_beat:
            stages = {name: asdict(status) | self.tail.record(name) for name, status in self.status.items()}
            state = {**this_process().record(), "t": time.time(), "beat_s": self.policy.beat_s, "stages": stages}
            self._next_beat = time.monotonic() + self.policy.beat_s
            self._dirty = not self._books.attempt(
                "writing the run's state", lambda: self.run_files.write_state(state), now
            )
