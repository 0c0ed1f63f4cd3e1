"""Fault injection for runs inside one test process: storages that fail, and simulated processes that die.

A `World` is a store with simulated processes around it. `world.submit(plan, choose)` is one submission: a submitter
and a worker for each attempt, whose every call of the storage, request to stop and observer's hook is a `Point`.
`choose(point)` says what happens there:

    away         not done; what `io` raises after its retries (503)
    lost         done, but the answer never comes: raises the same
    slow         done after a while
    kill         the process dies before it; kill_after: when it is done
    kill_worker  the worker alone dies, its submitter lives

Death is a property of the storage: a dead process reaches it no more, so its heartbeats, writers and half-done work
stop as after `kill -9`, and its leases are judged dead as those of a pid that was given again. Points have names that
do not depend on timing, so that a table can be made of an undisturbed run's: `points(world.seen)`.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from obstore.exceptions import GenericError

from orchestrator.engine import publish
from orchestrator.engine import scheduler as scheduler_module
from orchestrator.engine.job import Done, Job
from orchestrator.engine.local import LocalExecutor
from orchestrator.engine.observe import Observer, Observers, RunResult
from orchestrator.engine.run import describe
from orchestrator.engine.scheduler import Policy, Scheduler
from orchestrator.engine.worker import run_stage
from orchestrator.io import storage as storage_module
from orchestrator.io.storage import Storage
from orchestrator.plan.types import Plan
from orchestrator.store import process as process_module
from orchestrator.store.artifacts import Store
from orchestrator.store.leases import Lease
from orchestrator.store.runs import create_run

WRITES = ("put", "create", "delete", "delete_many", "remove_empty")
READS = ("get", "get_ranges", "download", "stream", "head", "children", "list")
SLOW_S = 0.3
QUICK = Policy(poll_s=0.005, elsewhere_s=0.01, grace_s=0.5, cancel_file_s=0.05, patience_s=5.0, away_s=0.01)
"""Patient with a store that is away."""
STRICT = replace(QUICK, patience_s=0.0)
"""Not patient at all."""


class Death(BaseException):
    """Ends a simulated process; nothing catches it."""


@dataclass(frozen=True)
class Point:
    """Where something can happen: the `occurrence`-th time that such a process does `what` with `key`."""

    who: str
    what: str
    key: str
    occurrence: int

    def __str__(self) -> str:
        return f"{self.who} {self.what} {self.key} #{self.occurrence}"


Choose = Callable[[Point], str | None]


def nothing(point: Point) -> None:
    """Choose no fault."""


def at(chosen: Point, fault: str) -> Choose:
    """Choose a fault at one point."""
    return lambda point: fault if point == chosen else None


def points(seen: Iterable[Point], reads: int = 1) -> list[Point]:
    """The distinct points of a run; of repeated reads (polling) only the first few."""
    return [p for p in dict.fromkeys(seen) if p.what not in READS or p.occurrence <= reads]


class Process:
    """A simulated process: the submitter, or a worker (which dies with its `parent`)."""

    def __init__(self, world: World, who: str, parent: Process | None = None) -> None:
        self.world, self.who, self.parent = world, who, parent
        self.dead = threading.Event()
        self.storage = FaultyStorage(self)
        world.opened[self.storage.url] = self.storage

    def is_dead(self) -> bool:
        return self.dead.is_set() or (self.parent is not None and self.parent.is_dead())

    def die(self, with_parent: bool) -> None:
        """End here; never returns."""
        victim = self.parent if with_parent and self.parent is not None else self
        victim.dead.set()
        raise Death

    def do(self, what: str, key: str, action: Callable[[], Any]) -> Any:
        """The action, or what is chosen to happen instead or after."""
        if self.is_dead():
            raise Death
        fault = self.world.reach(self.who, what, key)
        if fault in ("kill", "kill_worker"):
            self.die(with_parent=fault == "kill")
        if fault == "away":
            raise away(self.storage.where(key))
        if fault == "slow":
            time.sleep(SLOW_S)
        result = action()
        if fault == "kill_after":
            self.die(with_parent=True)
        if fault == "lost":
            raise away(self.storage.where(key))
        return result


class FaultyStorage(Storage):
    """The world's storage as one process sees it."""

    def __init__(self, process: Process) -> None:
        self.url = f"fault://{id(process.world):x}/{len(process.world.opened)}"
        self._process, self._inner = process, process.world.inner

    def local(self, key: str) -> Path | None:
        return self._inner.local(key)

    def where(self, key: str) -> str:
        return self._inner.where(key)


def _faulty(name: str) -> Callable[..., Any]:
    def method(self: FaultyStorage, key: Any, *args: Any, **options: Any) -> Any:
        shown = key if isinstance(key, str) else next(iter(key), "")
        return self._process.do(name, shown, lambda: getattr(self._inner, name)(key, *args, **options))

    return method


for _name in (*WRITES, *READS):
    setattr(FaultyStorage, _name, _faulty(_name))


class World:
    """A store at `url`, and the simulated processes that work on it. A context manager, one at a time."""

    def __init__(self, url: str) -> None:
        self.inner = Storage.open(url)
        self.store = Store(self.inner, self.inner.url)
        self.opened: dict[str, FaultyStorage] = {}
        self.said: list[str] = []
        self.seen: list[Point] = []
        self.faults = 0
        self._lives = 0
        self._leases: list[Lease] = []
        self._choose: Choose = nothing
        self._stages: dict[str, str] = {}
        self._times: Counter[tuple[str, str, str]] = Counter()
        self._lock = threading.Lock()

    def __enter__(self) -> World:
        hook, usual, take = threading.excepthook, Storage.open, scheduler_module.acquire

        def acquire(*arguments: Any, **options: Any) -> Any:
            lease = take(*arguments, **options)
            self._leases += [lease] if isinstance(lease, Lease) else []
            return lease

        self._kept = (hook, Storage.__dict__["open"], take, process_module.pid_started, publish.code)
        publish.code = dict  # a checkout's uncommitted changes would be in each manifest: some 100 ms
        scheduler_module.acquire = acquire
        Storage.open = classmethod(lambda cls, url: self.opened.get(url) or usual(url))  # type: ignore[assignment]
        process_module.pid_started = lambda pid: f"life {self._lives}"
        threading.excepthook = lambda args: None if args.exc_type is Death else hook(args)
        return self

    def __exit__(self, *exception: object) -> None:
        hook, opened, take, started, code = self._kept
        threading.excepthook, Storage.open, scheduler_module.acquire = hook, opened, take
        process_module.pid_started, publish.code = started, code

    def submit(self, plan: Plan, choose: Choose = nothing, policy: Policy = QUICK) -> RunResult | None:
        """One submission; None if it died. What it reached is in `seen`, what it told people in `said`."""
        self._lives += 1
        self._choose, self.seen, self.said, self.faults = choose, [], [], 0
        self._times.clear()
        self._stages = {str(n.fingerprint): n.name for n in reversed(plan.nodes.values())}
        process = Process(self, "submitter")
        workers = Workers(process)
        try:
            store = Store(process.storage, process.storage.url)
            run = create_run(store, "toys", "name: toys\n", describe(plan, SimpleNamespace(again=("toys.yaml",))))
            observers = Observers([Hooks(process)], self.said.append)
            return Scheduler(plan, store, workers, run, observers, policy).run()
        except Death:
            return None
        finally:
            process.dead.set()
            for lease in self._leases:
                lease._stopped.set()  # its thread ends now, not at its next heartbeat
            workers.join()

    def reach(self, who: str, what: str, key: str) -> str | None:
        """Note a point, and choose."""
        with self._lock:
            name = self._name(key)
            self._times[who, what, name] += 1
            point = Point(who, what, name, self._times[who, what, name])
            self.seen.append(point)
            fault = self._choose(point)
            self.faults += fault is not None
            return fault

    def _name(self, key: str) -> str:
        """The key without what differs between two runs."""
        for fingerprint, stage in self._stages.items():
            key = key.replace(fingerprint, stage)
        key = re.sub(r"\d{8}-\d{6}-toys-[0-9a-f]{4}", "RUN", key)
        key = re.sub(r"/(events|logs)/\d+", r"/\1/N", key)
        return re.sub(r"probe-[0-9a-f]+", "probe", key)


class Workers(LocalExecutor):
    """Threads as simulated worker processes; they die with their submitter, or alone."""

    def __init__(self, submitter: Process) -> None:
        super().__init__(cpus=2)
        self._submitter = submitter
        self._threads: list[threading.Thread] = []

    def submit(self, job: Job) -> None:
        self._current[job.stage] = job.attempt
        thread = threading.Thread(target=self._work, args=(job,), name=job.stage, daemon=True)
        self._threads.append(thread)
        thread.start()

    def join(self) -> None:
        """Wait for the threads, which notice at their next call that they are dead."""
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive(), f"{thread.name} is still at work"

    def _work(self, job: Job) -> None:
        process = Process(self._submitter.world, "worker", self._submitter)
        asked = count(1)

        def should_stop() -> str | None:
            return process.do("should_stop", f"{job.stage} {next(asked)}", lambda: self._stops.get(job.attempt))

        try:
            done = Done(job.stage, run_stage(replace(job, store=process.storage.url), should_stop, capture=False))
        except Death:
            done = Done(job.stage, died="killed by a test")
        process.dead.set()
        if self._current.get(job.stage) == job.attempt:
            del self._current[job.stage]
            self._ended.put(done)


class Hooks(Observer):
    """Makes points of the observer's hooks: the submitter's state changes."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def stage_state(self, node, status):
        self._process.do("state", f"{node.name} {status.state}", lambda: None)

    def stage_started(self, node):
        self._process.do("started", node.name, lambda: None)

    def stage_finished(self, node, manifest, cached, children):
        self._process.do("finished", node.name, lambda: None)


def away(where: str) -> Exception:
    """What `io` raises when the store still answers 503 after all retries."""
    return storage_module._explain(
        where, GenericError("Server returned 503 Service Unavailable, after 10 retries"), False
    )
