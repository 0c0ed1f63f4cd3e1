"""Runs: one a submission, what was asked for and how far it came.

    <root>/runs/<run>/recipe.yaml  plan.json     written once
    <root>/runs/<run>/state.json                 rewritten by the engine of that run, also as its sign of life
    <root>/runs/<run>/cancel                     created by whoever wants it to stop; the engine looks for it

A run's id begins with its time (UTC), so that ids sort by age. Results are not here: they are artifacts, and runs
share them.
"""

from __future__ import annotations

import calendar
import json
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import UserError
from orchestrator.io.redact import redact
from orchestrator.store.artifacts import Store
from orchestrator.store.keep import find_kept
from orchestrator.store.process import recorded

SILENT_BEATS = 12
"""So many missed signs of life: a store that is away for a minute, or clocks that differ by one, mean nothing."""


@dataclass(frozen=True)
class Run:
    """One submission's record."""

    store: Store
    id: str

    @property
    def name(self) -> str:
        """The recipe's name, as far as it is in the id."""
        return "-".join(self.id.split("-")[2:-1])

    @property
    def started(self) -> float:
        """Unix seconds, from the id."""
        return float(calendar.timegm(time.strptime(self.id[:15], "%Y%m%d-%H%M%S")))

    def recipe(self) -> str:
        """The resolved recipe, as YAML."""
        return self._get("recipe.yaml").decode()

    def plan(self) -> dict[str, Any]:
        """The plan as it was submitted; one without stages if the submission ended before that was written."""
        try:
            return json.loads(self._get("plan.json"))
        except (FileNotFoundError, ValueError):
            return {"name": self.name, "stages": {}}

    def state(self) -> dict[str, Any]:
        """How far the run is, as its engine wrote it last; {} if it has not begun, or a power cut has torn that."""
        try:
            return json.loads(self._get("state.json"))
        except (FileNotFoundError, ValueError):
            return {}

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Replace the state; for the run's engine alone."""
        self.store.storage.put(self._key("state.json"), _json(state))

    def cancel(self, reason: str = "") -> bool:
        """Ask the run to stop; False if somebody asked before."""
        return self.store.storage.create(self._key("cancel"), reason.encode())

    def cancelled(self) -> bool:
        """Whether somebody asked the run to stop."""
        return self.store.storage.head(self._key("cancel")) is not None

    def _key(self, name: str) -> str:
        return f"runs/{self.id}/{name}"

    def _get(self, name: str) -> bytes:
        return self.store.storage.get(self._key(name))


def create_run(store: Store, name: str, recipe: str, plan: Mapping[str, Any]) -> Run:
    """Record a new submission of the recipe called `name`, given as resolved YAML, with its plan."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "run"
    while True:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        run = Run(store, f"{stamp}-{slug}-{secrets.token_hex(2)}")
        if store.storage.create(f"runs/{run.id}/recipe.yaml", redact(recipe).encode()):
            store.storage.create(f"runs/{run.id}/plan.json", _json(plan), durable=True)
            return run


def list_runs(store: Store) -> list[Run]:
    """All runs, newest first."""
    ids = [i for i in store.storage.children("runs") if re.match(r"\d{8}-\d{6}-", i)]
    return [Run(store, i) for i in sorted(ids, reverse=True)]


def find_run(store: Store, which: str = "last") -> Run:
    """A run by its id, by a part of it that only one run has, by the name it is kept under, or "last"; UserError with
    the candidates otherwise.
    """
    runs = list_runs(store)
    kept = find_kept(store.storage, which)
    if kept is not None and kept.run is not None:
        which = kept.run
    if which == "last":
        found = runs[:1]
    else:
        found = [run for run in runs if run.id == which] or [run for run in runs if which in run.id]
    if len(found) == 1:
        return found[0]
    candidates = ", ".join(run.id for run in (found or runs)[:5])
    if not runs:
        raise UserError(f"no runs in {store.url} yet", "start one with `orch submit RECIPE`")
    if found:
        raise UserError(f"'{which}' is the name of {len(found)} runs", f"write more of the id: {candidates}")
    raise UserError(f"no run '{which}' in {store.url}", f"the newest are: {candidates}")


def engine_is_gone(state: Mapping[str, Any], now: float | None = None) -> bool:
    """Whether the process that wrote this state has ended: known on its own machine, else judged by its silence.

    Args:
        now: Unix seconds; an engine elsewhere counts as gone when it has missed some ten signs of life.
    """
    engine = recorded(state)
    alive = engine.alive() if engine is not None else None
    if alive is not None:
        return not alive
    return silence_s(state, now) > SILENT_BEATS * state.get("beat_s", 10.0)


def silence_s(state: Mapping[str, Any], now: float | None = None) -> float:
    """Seconds since the engine wrote this state (it does so every `beat_s`); by two machines' clocks."""
    return (time.time() if now is None else now) - state.get("t", 0.0)


def _json(value: Mapping[str, Any]) -> bytes:
    return redact(json.dumps(value, indent=2)).encode() + b"\n"
