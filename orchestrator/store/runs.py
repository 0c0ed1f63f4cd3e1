"""Runs: one a submission, what was asked for and how far it came.

    <root>/runs/<run>/recipe.yaml  plan.json     written once
    <root>/runs/<run>/state.json                 rewritten by the engine of that run
    <root>/runs/<run>/cancel                     created by whoever wants it to stop; the engine looks for it
    <root>/runs/<run>/kept                       created to protect the run's artifacts

A run's id begins with its time (UTC), so that ids sort by age. Results are not here: they are artifacts, and runs
share them.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import UserError
from orchestrator.store.artifacts import Store


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
        return time.mktime(time.strptime(self.id[:15], "%Y%m%d-%H%M%S")) - time.timezone

    def recipe(self) -> str:
        """The resolved recipe, as YAML."""
        return self._get("recipe.yaml").decode()

    def plan(self) -> dict[str, Any]:
        """The plan as it was submitted."""
        return json.loads(self._get("plan.json"))

    def state(self) -> dict[str, Any]:
        """How far the run is, as its engine wrote it last; {} if it has not begun."""
        try:
            return json.loads(self._get("state.json"))
        except FileNotFoundError:
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

    def keep(self) -> None:
        """Protect the run's artifacts from collection."""
        self.store.storage.create(self._key("kept"), b"")

    def kept(self) -> bool:
        """Whether the run's artifacts are protected."""
        return self.store.storage.head(self._key("kept")) is not None

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
        if store.storage.create(f"runs/{run.id}/recipe.yaml", recipe.encode()):
            store.storage.put(f"runs/{run.id}/plan.json", _json(plan))
            return run


def list_runs(store: Store) -> list[Run]:
    """All runs, newest first."""
    ids = [i for i in store.storage.children("runs") if re.match(r"\d{8}-\d{6}-", i)]
    return [Run(store, i) for i in sorted(ids, reverse=True)]


def find_run(store: Store, which: str = "last") -> Run:
    """A run by its id, by a part of it that only one run has, or "last"; UserError with the candidates otherwise."""
    runs = list_runs(store)
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


def engine_is_gone(state: Mapping[str, Any]) -> bool:
    """Whether the process that wrote this state has ended, as far as this machine can tell."""
    if state.get("host") != socket.gethostname() or "pid" not in state:
        return False
    try:
        os.kill(state["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
