"""Kept runs and artifacts: names that people give to what must stay, the roots of garbage collection.

    <root>/kept/<name>      created if absent: {run} or {kind, fingerprint, stage}, and when

What is kept stays with everything it was made from, and is found by its name wherever a run or an artifact may be
named. What nobody keeps goes when it is old enough (collect.py).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import UserError
from orchestrator.io.storage import Storage

NAME = re.compile(r"(?!last$)[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Kept:
    """A name for a run, or for an artifact."""

    name: str
    at: float
    """Unix seconds."""
    run: str | None = None
    kind: str | None = None
    fingerprint: str | None = None
    stage: str | None = None

    @property
    def target(self) -> tuple[str | None, ...]:
        """What the name means, comparable."""
        return self.run, self.kind, self.fingerprint


def keep_run(storage: Storage, run: str, name: str | None = None) -> Kept:
    """Keep a run, all its artifacts and what they were made from; UserError if the name is taken."""
    return _create(storage, Kept(name or run, time.time(), run=run))


def keep_artifact(storage: Storage, kind: str, fingerprint: str, stage: str, name: str | None = None) -> Kept:
    """Keep an artifact and what it was made from; UserError if the name is taken."""
    name = name or f"{re.sub(r'[^A-Za-z0-9._-]+', '-', stage).strip('-')}-{fingerprint[:8]}"
    return _create(storage, Kept(name, time.time(), kind=kind, fingerprint=fingerprint, stage=stage))


def drop(storage: Storage, name: str) -> Kept:
    """Take the name back, and with it the protection; nothing is deleted. UserError if there is no such name."""
    kept = find_kept(storage, name)
    if kept is None:
        names = ", ".join(each.name for each in list_kept(storage)) or "none"
        raise UserError(f"nothing is kept as '{name}'", f"what is kept: {names}")
    storage.delete(f"kept/{name}")
    return kept


def find_kept(storage: Storage, name: str) -> Kept | None:
    """What is kept under a name, or None."""
    if not NAME.fullmatch(name):
        return None
    try:
        return _read(name, storage.get(f"kept/{name}"))
    except FileNotFoundError:
        return None


def list_kept(storage: Storage) -> list[Kept]:
    """Everything that is kept, by name."""
    names = [info.key.removeprefix("kept/") for info in storage.list("kept")]
    return [kept for kept in (find_kept(storage, name) for name in names) if kept is not None]


def _create(storage: Storage, kept: Kept) -> Kept:
    if not NAME.fullmatch(kept.name):
        raise UserError(f"'{kept.name}' cannot be a name", "write letters, digits, '-', '_' and '.', at most 100")
    fields: Mapping[str, Any] = {k: v for k, v in kept.__dict__.items() if v is not None and k != "name"}
    if not storage.create(f"kept/{kept.name}", json.dumps(fields, sort_keys=True).encode() + b"\n", durable=True):
        there = find_kept(storage, kept.name)
        if there is None or there.target != kept.target:
            raise UserError(
                f"'{kept.name}' is the name of something else that is kept",
                f"choose another with --as, or `orch keep --drop {kept.name}` first",
            )
        return there
    return kept


def _read(name: str, data: bytes) -> Kept:
    return Kept(name=name, **json.loads(data))
