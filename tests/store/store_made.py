"""Artifacts and runs as the engine would have made them, published into a real store; each holds a few bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.store.artifacts import Manifest, Store
from orchestrator.store.runs import Run, create_run

TYPES = {"dataset": "Dataset", "curate": "Dataset", "evaluate": "Report"}
DIGEST = "37e02869" * 8
"""Content digest of the external data."""


def make(
    store: Store,
    stage: str,
    kind: str = "pretrain",
    inputs: Mapping[str, Manifest] | None = None,
    config: Mapping[str, Any] | None = None,
    run: str = "20260101-000000-demo-0001",
    files: Mapping[str, bytes] | None = None,
    attempt: str = "0001-a",
    external: Mapping[str, str] | None = None,
    **fields: Any,
) -> Manifest:
    """Publish an artifact, unless it is there. `external`: role -> identity of models from outside the store."""
    edges = {
        role: {
            "artifact": TYPES.get(made.kind, "Model"),
            "kind": made.kind,
            "fingerprint": made.fingerprint,
            "output": "default",
            "content_digest": made.content_digest,
            "name": made.stage,
        }
        for role, made in (inputs or {}).items()
    }
    for role, identity in (external or {}).items():
        outside = {"artifact": "Model", "kind": "external", "output": "default", "content_digest": None}
        edges[role] = {**outside, "fingerprint": identity, "name": identity}
    targets: dict[str, Any] = {}
    for role, edge in edges.items():
        target = {k: edge[k] for k in ("artifact", "fingerprint", "output")}
        head, _, rest = role.partition(".")
        targets[head] = {rest: target} if rest and not rest.isdigit() else [target] if rest else target
    payload: dict[str, Any] = {"kind": kind, "version": 1, "versions": {}, "config": {**targets, **(config or {})}}
    if kind == "dataset":
        payload["external"] = [fields.pop("digest", DIGEST)]
    fingerprint = hashlib.sha256(repr((payload, kind == "dataset" and stage)).encode()).hexdigest()
    if (there := store.find(kind, fingerprint)) is not None:
        return there
    values: dict[str, Any] = {
        "kind": kind,
        "fingerprint": fingerprint,
        "attempt": attempt,
        "generation": 1,
        "stage": stage,
        "run": run,
        "payload": payload,
        "inputs": edges,
        "files": {},
        "content_digest": "",
        "metrics": {},
        "summary": {"source": "emoji"} if kind == "dataset" else {},
        "provenance": {"cpus": 2.0, "gpus": 0.0, "host": {"name": "here"}, "packages": {"torch": "2.13"}},
        "started": 1.0,
        "finished": 1000.0 + len(edges),
        "wall_s": 1800.0,
    }
    manifest = Manifest(**{**values, **fields})
    directory = store.attempt_dir(kind, fingerprint, attempt)
    write(directory, files or {"data.bin": f"{stage} {config}".encode()})
    return store.publish(manifest, directory)


def write(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write files below a directory."""
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)


def demo(store: Store, run: str = "20260101-000000-demo-0001", **teacher: Any) -> dict[str, Manifest]:
    """pairs -> clean -> teacher -> small, and a report that judges both models."""
    pairs = make(store, "pairs", "dataset", run=run)
    clean = make(store, "clean", "curate", {"data": pairs}, run=run)
    taught = make(store, "teacher", "pretrain", {"data": clean}, {"steps": 500, **teacher}, run=run)
    small = make(store, "small", "distill", {"data": clean, "teacher": taught, "init.from": taught}, run=run)
    scores = make(store, "scores", "evaluate", {"data": pairs, "models.0": small}, run=run, finished=2000.0)
    return {m.stage: m for m in (pairs, clean, taught, small, scores)}


def submitted(store: Store, made: Mapping[str, Manifest], state: str = "done", **states: str) -> Run:
    """A run that asked for these; `states` of single stages by name."""
    plan = {
        "stages": {name: {"kind": m.kind, "fingerprint": m.fingerprint, "needs": []} for name, m in made.items()},
    }
    run = create_run(store, "demo", "name: demo\n", plan)
    stages = {
        name: {"kind": m.kind, "fingerprint": m.fingerprint, "state": states.get(name, state), "reason": ""}
        for name, m in made.items()
    }
    run.write_state({"pid": 1, "host": "elsewhere", "stages": stages})
    return run
