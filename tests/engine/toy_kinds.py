"""Toy stages for the engine's tests: quick, free of torch, and told by their configuration how to behave.

What a stage did is left in a directory outside the store (`trace`), one file an execution, so that tests count
executions also across killed processes.
"""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from orchestrator.errors import StageError, StoreAway, UserError
from orchestrator.plan.types import Input, Node, Plan
from orchestrator.recipe.schema import Artifact, Dataset, Execution, Ref
from orchestrator.stages.base import Outcome, StageConfig, StageContext


class Toy(StageConfig):
    """Writes its name and its inputs' content.

    `behaviour` is execution-only, so that it can change between submits.
    """

    outputs: ClassVar[Mapping[str, type[Artifact]]] = {"default": Dataset}
    runner: ClassVar[str] = "toy_kinds:run"

    label: str
    """Identity of the stage."""
    needs: list[Ref[Dataset]] = []
    """Other toys."""
    behaviour: Execution[str] = "ok"
    """ok | fails | user_error | bug | store_away | full_disk | memory | waits_for_stop | waits_for_file"""
    steps: Execution[int] = 0
    """Steps of work before the end, with a checkpoint after each."""
    trace: Execution[str]
    """Directory for marks."""


def run(ctx: StageContext) -> Outcome:
    """Behave as told."""
    config = ctx.config
    assert isinstance(config, Toy)
    trace = Path(config.trace)
    mark = trace / f"{ctx.stage}-{uuid.uuid4().hex}.started"
    mark.write_text(str(os.getpid()))
    print(f"hello from {ctx.stage}", flush=True)
    ctx.events.emit("progress", done=0, total=2, unit="samples")
    behave(ctx, config.behaviour, trace)
    worked = work(ctx, config.steps, trace)
    ctx.events.emit("progress", done=2, total=2, unit="samples")
    if (reason := ctx.should_stop()) is not None:
        return Outcome(stopped=reason)
    text = "+".join(
        [config.label, *worked, *(handle.read("text").decode() for _, handle in sorted(ctx.inputs.items()))]
    )
    (ctx.out / "text").write_text(text)
    (ctx.out / "when").write_text(str(time.time()))
    mark.rename(mark.with_suffix(".finished"))
    return Outcome(metrics={"length": float(len(text))}, undeclared=("when",))


def behave(ctx: StageContext, behaviour: str, trace: Path) -> None:
    """The part that goes wrong."""
    if behaviour == "fails":
        raise StageError("the toy is broken", "buy another")
    if behaviour == "user_error":
        raise UserError("the toy was held wrongly")
    if behaviour == "bug":
        raise ValueError("no such toy")
    if behaviour == "store_away":
        try:
            raise StoreAway("storage failed after retries: 503", "submit again")
        except StoreAway as error:
            raise ValueError("a library stumbled") from error
    if behaviour == "full_disk":
        raise OSError(errno.ENOSPC, "No space left on device")
    if behaviour == "memory":
        raise MemoryError
    if behaviour == "waits_for_stop":
        wait(lambda: ctx.should_stop() is not None)
    if behaviour == "waits_for_file":
        wait(lambda: ctx.should_stop() is not None or (trace / "go").exists())


def work(ctx: StageContext, steps: int, trace: Path) -> list[str]:
    """Steps that depend on those before; goes on from the last checkpoint."""
    done: list[str] = []
    if steps and (last := ctx.checkpoints.latest()) is not None:
        done = ctx.checkpoints.read(last, "done").decode().split()
        ctx.events.emit("resumed", samples=last.samples, generation=last.generation)
    for step in range(len(done), steps):
        if ctx.should_stop() is not None:
            return done
        (trace / f"{ctx.stage}-{uuid.uuid4().hex}.step{step}").touch()
        done.append(f"{step}of{steps}")
        ctx.events.emit("report", samples=step + 1, metrics={"loss": 1 / (step + 1)})
        ctx.events.flush()
        ctx.checkpoints.save(step + 1, {"done": " ".join(done).encode(), "more": b"x"})
        ctx.checkpoints.prune(keep=1)
    return done


def wait(condition, timeout_s: float = 60) -> None:
    """Until the condition holds; AssertionError after the time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def count(trace: Path, stage: str, ending: str = "*ed") -> int:
    """How often a stage's body was begun (`ending` "finished": and came to its end; "stepN": and did its step N)."""
    return len(list(trace.glob(f"{stage}-*.{ending}")))


def plan(
    shape: Mapping[str, tuple[str, ...]], trace: Path, behaviours: Mapping[str, str] | None = None, **settings
) -> Plan:
    """A plan of toys: stage -> the stages it needs."""
    import hashlib

    nodes: dict[str, Node] = {}
    for name, needs in shape.items():
        config = Toy(
            label=name, trace=str(trace), behaviour=(behaviours or {}).get(name, "ok"), **settings.get(name, {})
        )
        inputs = tuple(
            Input(("needs", number), "Dataset", up, "default", None, "toy", nodes[up].fingerprint)
            for number, up in enumerate(needs)
        )
        payload = {"label": name, "inputs": [i.fingerprint for i in inputs]}
        fingerprint = hashlib.sha256(repr(payload).encode()).hexdigest()
        nodes[name] = Node(name, "toy", config, inputs, config.resources.resolve(), payload, fingerprint)
    return Plan("toys", nodes)


SHAPES: dict[str, dict[str, tuple[str, ...]]] = {
    "one": {"a": ()},
    "chain": {"a": (), "b": ("a",), "c": ("b",)},
    "fork": {"a": (), "b": ("a",), "c": ("a",), "d": ("a",)},
    "join": {"a": (), "b": (), "c": ("a", "b")},
    "diamond": {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")},
    "islands": {"a": (), "b": ("a",), "x": (), "y": ("x",)},
    "matrix": {"a": (), "b1": ("a",), "b2": ("a",), "b3": ("a",), "c": ("b1", "b2", "b3"), "d": ("a", "c")},
}
