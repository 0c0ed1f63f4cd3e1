"""What a plan would do, and why: for each stage whether it is there, or which fields make it run again, and for how
long.

Reasons compare the stage's payload with that of the nearest artifact made under the same stage name: of those with
the fewest differences the newest. Time is estimated from it too, scaled by the amount of work; without one, from the
kind's newest artifact with known work. Everything here is plain data; the command line draws the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from orchestrator.plan.diff import diff
from orchestrator.plan.source import source_digest
from orchestrator.plan.types import Node, Plan, Resources

NEAREST_OF = 200
"""Artifacts of the same stage name that are compared, the newest ones."""


class Past(Protocol):
    """What is read of a finished artifact (store/artifacts.py's Manifest)."""

    @property
    def stage(self) -> str: ...
    @property
    def payload(self) -> Mapping[str, Any]: ...
    @property
    def inputs(self) -> Mapping[str, Mapping[str, Any]]: ...
    @property
    def summary(self) -> Mapping[str, Any]: ...
    @property
    def provenance(self) -> Mapping[str, Any]: ...
    @property
    def wall_s(self) -> float: ...


Find = Callable[[str, str], Past | None]
"""(kind, fingerprint) to the finished artifact, or None: `Store.find`."""
History = Callable[[str], Iterable[Past]]
"""Kind to all finished artifacts, newest last: `Store.manifests`."""


@dataclass(frozen=True)
class Status:
    """One stage of a plan.

    Attributes:
        stage, kind: which.
        state: "cached" (nothing to do), "to run", or "pending" (something must be known first).
        reasons: why it runs or waits; empty when cached.
        fingerprint: None while pending.
        resources: what it reserves.
        estimate_s: seconds it will take by past runs, 0 when cached, None if unknown.
        code_changed: cached, its version is the same, but its code is not what made it.
    """

    stage: str
    kind: str
    state: Literal["cached", "to run", "pending"]
    reasons: tuple[str, ...]
    fingerprint: str | None
    resources: Resources
    estimate_s: float | None
    code_changed: bool = False

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**dataclasses.asdict(self), "reasons": list(self.reasons)}


@dataclass(frozen=True)
class Explanation:
    """All stages of a plan, in its order."""

    name: str
    stages: tuple[Status, ...]

    @property
    def estimate_s(self) -> float | None:
        """Seconds of all stages one after another; None if one is unknown."""
        estimates = [status.estimate_s for status in self.stages]
        return None if None in estimates else sum(e for e in estimates if e is not None)

    def to_json(self) -> dict[str, Any]:
        """As JSON values: what `orch plan --json` prints."""
        stages = [status.to_json() for status in self.stages]
        return {"name": self.name, "estimate_s": self.estimate_s, "stages": stages}


def explain(plan: Plan, find: Find, history: History) -> Explanation:
    """Whether every stage of a plan runs, why, and for how long. `history` is asked once a kind that runs."""
    pasts: dict[str, list[Past]] = {}
    statuses = []
    for node in plan.nodes.values():
        found = find(node.kind, node.fingerprint) if node.fingerprint is not None else None
        if found is not None:
            statuses.append(_cached(node, found))
            continue
        if node.kind not in pasts:
            pasts[node.kind] = list(history(node.kind))
        statuses.append(_to_run(node, pasts[node.kind]))
    return Explanation(plan.name, tuple(statuses))


def _cached(node: Node, found: Past) -> Status:
    sources = getattr(node.config, "sources", ())
    made_by = found.provenance.get("sources", {})
    changed = any(package in made_by and made_by[package] != source_digest(package) for package in sources)
    return Status(node.name, node.kind, "cached", (), node.fingerprint, node.resources, 0.0, changed)


def _to_run(node: Node, pasts: list[Past]) -> Status:
    same_stage = [past for past in pasts if past.stage == node.name][-NEAREST_OF:]
    if node.payload is None:
        nearest = same_stage[-1] if same_stage else None
        estimate = _estimate(node, nearest, pasts)
        return Status(node.name, node.kind, "pending", (str(node.pending),), None, node.resources, estimate)
    compared = [(past, _reasons(node, past)) for past in same_stage]
    nearest, reasons = min(reversed(compared), key=lambda pair: len(pair[1]), default=(None, ["never run"]))
    estimate = _estimate(node, nearest, pasts)
    return Status(node.name, node.kind, "to run", tuple(reasons), node.fingerprint, node.resources, estimate)


def _reasons(node: Node, past: Past) -> list[str]:
    old_names = {key: str(value["name"]) for key, value in past.inputs.items() if "name" in value}
    new_names = {i.key: i.stage or str(i.external) for i in node.inputs}
    return diff(past.payload, node.payload or {}, type(node.config), old_names, new_names)


def _estimate(node: Node, nearest: Past | None, pasts: list[Past]) -> float | None:
    """Seconds, by the nearest past run of the stage, or by the work of any of its kind."""
    work = getattr(node.config, "work", lambda: None)()
    for past in (*([nearest] if nearest is not None else []), *reversed(pasts)):
        done = past.summary.get("work")
        if work is not None and done:
            return past.wall_s * work / float(done)
        if past is nearest:
            return past.wall_s
    return None
