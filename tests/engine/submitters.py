"""Submitting processes of a toy that works in steps, some of which stop themselves (SIGSTOP) at a chosen moment.

Run as a script it is one submission: `submitters.py STORE TRACE TTL [MOMENT]`. It prints the states of its stages.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from toy_kinds import wait

from orchestrator.engine.local import LocalExecutor
from orchestrator.engine.observe import Observers, RunResult
from orchestrator.engine.scheduler import Policy, Scheduler
from orchestrator.io.storage import Storage
from orchestrator.plan.types import Node, Plan
from orchestrator.recipe.schema import Artifact, Dataset, Execution
from orchestrator.stages.base import Outcome, StageConfig, StageContext
from orchestrator.store.artifacts import Store
from orchestrator.store.runs import create_run

FINGERPRINT = "5" * 64
STEPS = 6
HELD = 4
"""The step before which all wait until they are told to go on."""


class Walker(StageConfig):
    """Takes steps, each from the one before, with a checkpoint after each."""

    outputs: ClassVar[Mapping[str, type[Artifact]]] = {"default": Dataset}
    runner: ClassVar[str] = "submitters:walk"

    trace: Execution[str]
    """Directory for marks: one for each step of each execution, and `go`."""


def walk(ctx: StageContext) -> Outcome:
    """Go on from the last checkpoint; before step `HELD` wait for the file `go`."""
    config = ctx.config
    assert isinstance(config, Walker)
    trace, me = Path(config.trace), uuid.uuid4().hex[:8]
    last = ctx.checkpoints.latest()
    way = [] if last is None else ctx.checkpoints.read(last, "way").decode().split()
    if last is not None:
        ctx.events.emit("resumed", samples=last.samples, generation=last.generation)
    (trace / f"{me}.begun").touch()
    for step in range(len(way), STEPS):
        if step == HELD:
            (trace / f"{me}.held").touch()
            wait(lambda: ctx.should_stop() is not None or (trace / "go").exists())
        if (reason := ctx.should_stop()) is not None:
            return Outcome(stopped=reason)
        (trace / f"{me}.step{step}").touch()
        way.append(f"{step}")
        ctx.events.emit("report", samples=step + 1, metrics={"loss": 1 / (step + 1)})
        ctx.events.flush()
        ctx.checkpoints.save(step + 1, {"way": " ".join(way).encode()})
        ctx.checkpoints.prune(keep=2)
    (ctx.out / "way").write_text(" ".join(way))
    return Outcome(metrics={"steps": float(len(way))})


def submit(store: str, trace: str, ttl_s: float) -> RunResult:
    """Submit a plan of one walker."""
    config = Walker(trace=trace)
    node = Node("walk", "walker", config, (), config.resources.resolve(), {"of": "toys"}, FINGERPRINT)
    opened = Store.open(store)
    policy = Policy(poll_s=0.02, elsewhere_s=0.1, lease_ttl_s=ttl_s, beat_s=600)
    observers = Observers([], lambda text: None)
    run = create_run(opened, "toys", "", {})
    return Scheduler(Plan("toys", {"walk": node}), opened, LocalExecutor(), run, observers, policy).run()


def start(store: str, trace: Path, ttl_s: float, moment: str = "") -> subprocess.Popen:
    """Begin a submission in a process of its own."""
    command = [sys.executable, __file__, store, str(trace), str(ttl_s), moment]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


MOMENTS = {
    "while a checkpoint is half written": ("put", "ckpt-3/complete.json"),
    "while old checkpoints are deleted": ("delete", "ckpt-1/complete.json"),
    "before its heartbeat is written": ("put", f"leases/{FINGERPRINT}/1"),
    "when it has checked its lease and is about to publish": ("create", "manifest.json"),
}
"""Calls of the store before which a submission can be made to stop itself."""


def stop_before(moment: str) -> None:
    """Stop this process, once, before such a call."""
    method, ending = MOMENTS[moment]
    original, stopped = getattr(Storage, method), []

    def stops(self, key, *args, **options):
        if key.endswith(ending) and not stopped:
            stopped.append(True)
            os.kill(os.getpid(), signal.SIGSTOP)
        return original(self, key, *args, **options)

    setattr(Storage, method, stops)


if __name__ == "__main__":
    import submitters  # the runner is looked up in this module, which must be there once

    if sys.argv[4]:
        stop_before(sys.argv[4])
    result = submitters.submit(sys.argv[1], sys.argv[2], float(sys.argv[3]))
    print(json.dumps({name: status.state for name, status in result.stages.items()}))
