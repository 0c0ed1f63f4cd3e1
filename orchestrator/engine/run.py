"""A submission from beginning to end: plan, index what is unknown, run what is missing, show it, say how to go on.

Where everything is there already, nothing is started and Ray is not imported. Ctrl-C once lets running stages
checkpoint and stop, twice ends them; either way submitting again goes on. SIGTERM is the command's to handle
(cli/submit.py makes it a Ctrl-C): a program that calls this as a library keeps its own.
"""

from __future__ import annotations

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

from orchestrator.engine.local import LocalExecutor
from orchestrator.engine.observe import Observer, Observers, RunResult
from orchestrator.engine.planning import Request, check_known, unknown_sources
from orchestrator.engine.publish import code
from orchestrator.engine.scheduler import Executor, Scheduler
from orchestrator.engine.view import LiveView, PlainView
from orchestrator.plan.types import Plan
from orchestrator.store.artifacts import Store
from orchestrator.store.runs import Run, create_run

PASSED_ON = ("AWS_", "HF_", "ORCH_")
"""Variables that the local cluster's workers get from this process: the cluster may have been started under others."""


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
        chosen = place.executor() if missing else LocalExecutor(0)
        record = create_run(store, plan.name, yaml.safe_dump(dict(plan.recipe), sort_keys=False), describe(plan))
        everyone = Observers([view, *observers, *place.observers(record.id)], view.say)
        everyone.tell("run_started", plan, record.id, code().get("code", {}))
        scheduler = Scheduler(plan, store, chosen, record, everyone)
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
        self._environment: dict[str, str] = {}
        self._connected = False
        self.dashboard_url: str | None = None

    def index(self, source: str) -> None:
        """Make a source known."""
        from orchestrator.engine.index import index_here, index_on_ray

        self._say(f"indexing {source}: its content is its identity")
        if self._given:
            index_here(self._store.url, source, self._say)
        else:
            self._connect()
            index_on_ray(self._store.url, source, self._say)

    def executor(self) -> Executor:
        """The executor."""
        if self._executor is None:
            self._connect()
            from orchestrator.engine.ray_executor import RayExecutor

            self._executor = RayExecutor(self._environment)
        return self._executor

    def observers(self, run: str) -> list[Observer]:
        """Who watches on behalf of the cluster, if there is one."""
        if not self._connected:
            return []
        from orchestrator.engine.metrics import RayMetrics

        return [RayMetrics(run)]

    def _connect(self) -> None:
        if self._connected:
            return
        from orchestrator.engine import cluster

        connection = cluster.connect(self._say)
        self._connected = True
        self._stack.callback(cluster.disconnect, connection)
        self._stack.enter_context(redirect_stdout(sys.stderr))  # Ray prints what it thinks of dead workers
        self.dashboard_url = connection.dashboard_url
        if connection.local is not None:
            self._environment = {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON)}
        if connection.dashboard_url:
            self._say(f"Ray dashboard: {connection.dashboard_url} (`orch ui` opens it)")


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


def describe(plan: Plan) -> dict[str, Any]:
    """A plan as JSON values: what is kept with the run."""
    return {
        "name": plan.name,
        "stages": {
            n.name: {"kind": n.kind, "fingerprint": n.fingerprint, "needs": list(n.upstream)}
            for n in plan.nodes.values()
        },
    }


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
