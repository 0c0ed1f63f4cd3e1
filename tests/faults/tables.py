"""What the tables of faults are made of: graph shapes, places, and what must hold after a disturbed submission."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import toy_kinds
from faults import QUICK, READS, WRITES, World, points

from orchestrator.engine.observe import RunResult
from orchestrator.plan.types import Plan

T = TypeVar("T")
STEPS = {"a": {"steps": 2}}
"""Stage `a` of every shape keeps checkpoints."""
SHAPES = (*toy_kinds.SHAPES, "twins")


def plan_of(shape: str, trace: Path) -> Plan:
    """A plan of toys; `twins` are two stages of equal identity and one that needs both."""
    trace.mkdir(exist_ok=True)
    if shape != "twins":
        return toy_kinds.plan(toy_kinds.SHAPES[shape], trace, **STEPS)
    plan = toy_kinds.plan({"a": (), "twin": (), "c": ("a", "twin")}, trace, **STEPS)
    nodes = dict(plan.nodes)
    nodes["twin"] = type(nodes["a"])(**{**nodes["a"].__dict__, "name": "twin"})
    return Plan("toys", nodes)


@dataclass(frozen=True)
class Truth:
    """An undisturbed run: content digests by stage and the points it reached."""

    digests: dict[str, str]
    points: tuple

    @property
    def calls(self) -> tuple:
        """Points at which the storage is called."""
        return tuple(p for p in self.points if p.what in STORAGE)


STORAGE = (*READS, *WRITES)


def undisturbed(shape: str, root: str, trace: Path) -> Truth:
    """Run a shape with no fault at all, to know what must come out and where faults can be put."""
    with World(root) as world:
        result = world.submit(plan_of(shape, trace))
        assert result is not None
        assert result.ok, [f"{s.name}: {s.reason}" for s in result.failed]
        return Truth(digests(result), tuple(points(world.seen)))


def digests(result: RunResult) -> dict[str, str]:
    return {name: manifest.content_digest for name, manifest in result.manifests.items()}


def finished(world: World, plan: Plan) -> set[str]:
    """Stages whose manifest is in the store."""
    return {n.name for n in plan.nodes.values() if world.inner.head(f"toy/{n.fingerprint}/manifest.json") is not None}


def bodies(plan: Plan, trace: Path) -> dict[str, int]:
    """How often each identity's body was begun, and each step of `a` done; under the name of its first stage."""
    names: dict[str, list[str]] = {}
    for node in plan.nodes.values():
        names.setdefault(str(node.fingerprint), []).append(node.name)
    found = {same[0]: sum(toy_kinds.count(trace, name) for name in same) for same in names.values()}
    steps = range(STEPS["a"]["steps"])
    return found | {f"a.{s}": sum(toy_kinds.count(trace, n, f"step{s}") for n in ("a", "twin")) for s in steps}


def submit_again(world: World, plan: Plan, trace: Path, truth: Truth, interruptions: int) -> RunResult:
    """An undisturbed submission after a disturbed one: everything is as if nothing had happened."""
    there, before = finished(world, plan), bodies(plan, trace)
    result = world.submit(plan, policy=QUICK)
    assert result is not None
    assert result.ok, [f"{s.name}: {s.reason}" for s in result.failed]
    holds(world, plan, trace, truth, interruptions, result)
    after = bodies(plan, trace)
    assert {name: after[name] for name in there & set(after)} == {name: before[name] for name in there & set(after)}
    return result


def holds(world: World, plan: Plan, trace: Path, truth: Truth, interruptions: int, result: RunResult) -> None:
    """Equal digests, files that are what the manifests say, no body and no step done more than 1 + interruptions."""
    assert digests(result) == truth.digests
    for node in plan.nodes.values():
        handle = world.store.handle("toy", str(node.fingerprint))
        for name in handle.manifest.files:
            handle.read(name)
    assert {n: c for n, c in bodies(plan, trace).items() if not 1 <= c <= 1 + interruptions} == {}


def sample(cases: Sequence[T], num: int | None, salt: int) -> list[T]:
    """Some `num` of the cases, always the same ones, others for another `salt`; None for all."""
    return list(cases) if num is None else random.Random(salt).sample(list(cases), min(num, len(cases)))
