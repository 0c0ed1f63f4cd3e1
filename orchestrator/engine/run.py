"""A submission from beginning to end: plan, index what is unknown, run what is missing, show it, say how to go on.

Where everything is there already, nothing is started and Ray is not imported. Ctrl-C once lets running stages
checkpoint and stop, twice ends them; either way submitting again goes on. SIGTERM is the command's to handle
(cli/submit.py makes it a Ctrl-C): a program that calls this as a library keeps its own.
"""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import replace
from typing import Any

import yaml

from orchestrator.data.location import is_shared
from orchestrator.engine import cluster
from orchestrator.engine.executor import Executor
from orchestrator.engine.index import COPY, INDEX, Step, here, on_ray
from orchestrator.engine.local import LocalExecutor
from orchestrator.engine.observe import Observer, Observers, RunResult
from orchestrator.engine.planning import Request, check_known, sources_to_copy, unknown_sources
from orchestrator.engine.publish import code
from orchestrator.engine.scheduler import Scheduler
from orchestrator.engine.view import LiveView, PlainView
from orchestrator.io.environment import Environment
from orchestrator.plan.types import Node, Plan
from orchestrator.store.artifacts import Store
from orchestrator.store.runs import Run, create_run


def run(
    request: Request,
    store: Store,
    view: PlainView | LiveView,
    observers: Sequence[Any] = (),
    executor: Executor | None = None,
) -> RunResult:
    """Run what is missing of a request.

    Args:
        observers: beside the view (observe.py).
        executor: where jobs run; None for the Ray cluster, connected to or started only if there is anything to do.
    """
    for line in request.said:
        view.say(line)
    plan = request.compile(store)
    with ExitStack() as stack:
        place = _Place(store, executor, view.say, stack)
        sources = unknown_sources(plan, store)
        if sources:
            for source in sources:
                place.index(source)
            plan = request.compile(store)
        check_known(plan)
        missing = [n for n in plan.nodes.values() if store.find(n.kind, str(n.fingerprint)) is None]
        for source in sources_to_copy(missing, store):
            place.copy_in(source)
        chosen = place.executor() if missing else LocalExecutor(0)
        recipe = yaml.safe_dump(dict(plan.recipe), sort_keys=False)
        record = create_run(store, plan.name, recipe, describe(plan, request))
        everyone = Observers([view, *observers, *place.observers(record.id)], view.say)
        everyone.tell("run_started", plan, record.id, code().get("code", {}))
        # Afresh: from here on the run's record protects what it finds from being collected, and not before.
        scheduler = Scheduler(plan, store.afresh(), chosen, record, everyone)
        with interrupts(scheduler.cancel, view.say):
            result = scheduler.run()
        result = replace(result, dashboard_url=place.dashboard_url)
        everyone.tell("run_finished", result.ok, result.cancelled or _stopped(result))
    _say_end(result, record, request, view.say)
    return result


class _Place:
    """Where work is done, found only when there is work."""

    def __init__(self, store: Store, executor: Executor | None, say: Callable[[str], None], stack: ExitStack) -> None:
        self._store, self._executor, self._say, self._stack = store, executor, say, stack
        self._given = executor is not None
        self._environment = Environment()
        self._connection: cluster.Connection | None = None

    def index(self, source: str) -> None:
        """Make a source known."""
        self._say(f"indexing {source}: its content is its identity")
        self._bring(INDEX, source)

    def copy_in(self, source: str) -> None:
        """Copy a source's shards into the store."""
        self._say(f"copying {source} into the store: workers elsewhere could not read it")
        self._bring(COPY, source)

    def _bring(self, step: Step, source: str) -> None:
        """Do a step where the source can be seen: on Ray where everybody sees it, else in this process."""
        if self._given or not is_shared(source):
            here(step, self._store.url, source, self._say)
        else:
            self._connect()
            on_ray(step, self._store.url, source, self._say, self._environment, self._lives)

    def executor(self) -> Executor:
        """The executor."""
        if self._executor is None:
            self._connect()
            from orchestrator.engine.ray_executor import RayExecutor

            self._executor = RayExecutor(self._environment, self._lives, self._renew)
        return self._executor

    def observers(self, run: str) -> list[Observer]:
        """Who watches on behalf of the cluster, if there is one."""
        if self._connection is None:
            return []
        from orchestrator.engine.metrics import RayMetrics

        return [RayMetrics(run)]

    def _connect(self) -> None:
        if self._connection is not None:
            return
        self._connection = cluster.connect(self._say)
        self._stack.callback(cluster.disconnect, self._connection)
        self._stack.enter_context(redirect_stdout(_RayWords()))
        if self._connection.local is not None:
            self._environment = Environment.to_pass_on()
        if self.dashboard_url:
            self._say(f"Ray dashboard: {self.dashboard_url} (`orch ui` opens it)")

    @property
    def dashboard_url(self) -> str | None:
        """The dashboard of the cluster that is used now, if there is one."""
        return None if self._connection is None else self._connection.dashboard_url

    def _lives(self) -> bool:
        return self._connection is None or cluster.alive(self._connection)

    def _renew(self) -> None:
        self._say("the local Ray cluster has ended: going on in a fresh one")
        self._connection = cluster.reconnect(self._say)


class _RayWords(io.TextIOBase):
    """Where Ray prints what it thinks of dead processes: stderr, but for what is said in a line of ours instead."""

    OURS = ("Raylet is terminated", "A worker died or was killed while executing a task")

    def __init__(self) -> None:
        self._left_out = False

    def write(self, text: str) -> int:
        left_out = any(words in text for words in self.OURS) or (self._left_out and text == "\n")
        if not left_out:
            sys.stderr.write(text)
        self._left_out = left_out
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()


@contextmanager
def interrupts(cancel: Callable[[], None], say: Callable[[str], None]) -> Iterator[None]:
    """While inside, Ctrl-C asks to stop; a third Ctrl-C is Python's own. Only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    count = 0

    def handle(number: int, frame: Any) -> None:
        nonlocal count
        count += 1
        if count > 2:
            raise KeyboardInterrupt
        cancel()
        say(
            "stopping: running stages checkpoint first; Ctrl-C again ends them now"
            if count == 1
            else "ending running stages now"
        )

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def describe(plan: Plan, request: Request) -> dict[str, Any]:
    """A plan as JSON values, and how to ask for it again: what is kept with the run."""
    return {
        "name": plan.name,
        "again": list(request.again),
        "directory": os.getcwd(),
        "stages": {n.name: _described(n) for n in plan.nodes.values()},
    }


def _described(node: Node) -> dict[str, Any]:
    """A stage of the plan, with the settings by which it can be said why it is slow or waits."""
    settings = {name: getattr(node.config, name, None) for name in ("batch", "micro_batch")}
    resources = {"cpus": node.resources.cpus, "gpus": node.resources.gpus, "workers": node.resources.workers}
    needs = list(node.upstream)
    return {"kind": node.kind, "fingerprint": node.fingerprint, "needs": needs, **resources, **settings}


def _stopped(result: RunResult) -> bool:
    return any(status.state == "stopped" for status in result.stages.values())


def _say_end(result: RunResult, record: Run, request: Request, say: Callable[[str], None]) -> None:
    """How it ended, and what to type next."""
    states = [status.state for status in result.stages.values()]
    if result.ok:
        made, cached = states.count("done"), states.count("cached")
        say(f"run {record.id}: {made} stages made, {cached} were there already")
        return
    for status in result.failed:
        say(f"stage '{status.name}' failed: {status.reason}" + (f"; {status.remedy}" if status.remedy else ""))
        say(f"  its log: orch logs {record.id} {status.name}")
    if _stopped(result):
        again = shlex.join([*request.again, "--store", record.store.url])
        say(f"stopped; nothing is lost, go on with: orch submit {again}")
