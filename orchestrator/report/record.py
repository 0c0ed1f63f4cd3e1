"""What the store knows of one run: the only thing that its page is made from, so that any machine can make it.

A stage's state comes from the run's record, its result from the manifest of its fingerprint (whoever made it), its
curves from its events and its last words from its log. Any of them may be missing: a run that has not begun, a stage
that failed, an artifact that was collected.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from orchestrator.errors import UserError
from orchestrator.store.artifacts import DamagedError, Handle, Manifest, Store
from orchestrator.store.events import Event, EventReader, curves
from orchestrator.store.logs import LogReader
from orchestrator.store.runs import Run, engine_is_gone

LOG_LINES = 25
"""Of a log that a page shows."""
AT_WORK = ("waiting", "elsewhere", "running")


@dataclass(frozen=True)
class StageRecord:
    """One stage of a run. Times are Unix seconds; `manifest` is None where there is no result in the store."""

    store: Store
    name: str
    kind: str
    fingerprint: str | None
    needs: tuple[str, ...]
    state: str
    reason: str
    remedy: str
    started: float | None
    finished: float | None
    attempts: int
    manifest: Manifest | None

    @property
    def handle(self) -> Handle | None:
        """Its artifact, opened."""
        return None if self.manifest is None else Handle(self.store, self.manifest)

    @cached_property
    def events(self) -> list[Event]:
        """Everything it emitted, over all attempts; [] where that is gone."""
        return EventReader(self.store.storage, self.fingerprint).poll() if self.fingerprint else []

    @cached_property
    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """What it reported: metric -> [(samples, value)]."""
        return curves(self.events)

    @property
    def progress(self) -> float | None:
        """Share that is done, as it said last."""
        said = next((event for event in reversed(self.events) if event["type"] == "progress"), None)
        return said["done"] / said["total"] if said and said.get("total") else None

    def log_tail(self) -> str:
        """The last lines of its log; "" where there is none."""
        if self.fingerprint is None:
            return ""
        return "\n".join(LogReader(self.store.storage, self.fingerprint).poll().splitlines()[-LOG_LINES:])


@dataclass(frozen=True)
class RunRecord:
    """One submission. `now` is when it was read; `recipe` the resolved recipe's YAML; `again` what follows
    `orch submit` to ask for it again.
    """

    store: Store
    id: str
    name: str
    started: float
    now: float
    recipe: str
    again: tuple[str, ...]
    stages: Mapping[str, StageRecord]

    @property
    def state(self) -> str:
        """One word: running, interrupted, failed, stopped, done."""
        states = {stage.state for stage in self.stages.values()}
        if states & set(AT_WORK):
            return "running"
        return next((word for word in ("interrupted", "failed", "stopped", "skipped") if word in states), "done")

    @property
    def finished(self) -> float:
        """When its last stage ended, or now while it runs."""
        ends = [stage.finished for stage in self.stages.values() if stage.finished is not None]
        return self.now if self.state == "running" or not ends else max(self.started, *ends)

    def of_kinds(self, kinds: tuple[str, ...]) -> list[StageRecord]:
        """Its stages of these kinds (none: of all), in its order."""
        return [stage for stage in self.stages.values() if not kinds or stage.kind in kinds]

    def name_of(self, fingerprint: str | None, otherwise: str) -> str:
        """What this run calls an artifact, whoever made it."""
        return next((s.name for s in self.stages.values() if s.fingerprint == fingerprint), otherwise)


def read(run: Run) -> RunRecord:
    """Everything about a run that is known now; UserError where nothing is."""
    plan, state = run.plan(), run.state()
    if not plan["stages"]:
        raise UserError(f"run {run.id} ended before it had begun: there is nothing to show", "submit its recipe again")
    statuses = state.get("stages", {})
    gone = bool(state) and engine_is_gone(state)
    stages = {
        name: _stage(run.store, name, node, statuses.get(name, {}), gone) for name, node in plan["stages"].items()
    }
    return RunRecord(
        run.store, run.id, plan["name"], run.started, time.time(), run.recipe(), tuple(plan.get("again", ())), stages
    )


def _stage(
    store: Store, name: str, node: Mapping[str, Any], status: Mapping[str, Any], engine_gone: bool
) -> StageRecord:
    state, fingerprint = status.get("state", "waiting"), status.get("fingerprint") or node["fingerprint"]
    reason = status.get("reason", "")
    if engine_gone and state in AT_WORK:
        state, reason = "interrupted", "the submitting process has ended; submitting again goes on"
    return StageRecord(
        store=store,
        name=name,
        kind=node["kind"],
        fingerprint=fingerprint,
        needs=tuple(node["needs"]),
        state=state,
        reason=reason,
        remedy=status.get("remedy", ""),
        started=status.get("started"),
        finished=status.get("finished"),
        attempts=status.get("attempts", 0),
        manifest=_manifest(store, node["kind"], fingerprint) if fingerprint else None,
    )


def _manifest(store: Store, kind: str, fingerprint: str) -> Manifest | None:
    """What is known of a result; None where it is gone or cannot be read."""
    try:
        return store.find(kind, fingerprint)
    except DamagedError:
        return None
