"""Finding things by what a person types, and following lineage, back to the data and forward to what uses it.

`RUN/STAGE`, a stage's name (of the newest run that has it), or a fingerprint's first characters name an artifact; a
run's id, part of it, or `last` name a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import UserError
from orchestrator.store.artifacts import Manifest, Store
from orchestrator.store.runs import find_run, list_runs

SHORTEST = 6
"""Characters of a fingerprint that are taken as one."""


def find_artifact(store: Store, text: str) -> Manifest:
    """The artifact that `text` names; UserError if there is none, it is not finished, or several match."""
    run, slash, stage = text.rpartition("/")
    if slash:
        return _of_run(store, find_run(store, run), stage)
    for candidate in list_runs(store):
        if text in candidate.state().get("stages", {}):
            return _of_run(store, candidate, text)
    if len(text) >= SHORTEST and set(text) <= set("0123456789abcdef"):
        found = [manifest for manifest in store.manifests() if manifest.fingerprint.startswith(text)]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(f"{m.fingerprint[:12]} ({m.stage})" for m in found[:5])
            raise UserError(f"'{text}' begins {len(found)} fingerprints: {names}", "write more of it")
    raise UserError(
        f"nothing in {store.url} is called '{text}'",
        "name a run (`orch status`), a stage, RUN/STAGE, or the first characters of a fingerprint",
    )


def _of_run(store: Store, run: Any, stage: str) -> Manifest:
    stages = run.state().get("stages", {})
    if stage not in stages:
        raise UserError(f"run {run.id} has no stage '{stage}'", f"its stages are: {', '.join(stages) or 'none yet'}")
    status = stages[stage]
    manifest = store.find(status["kind"], status["fingerprint"]) if status["fingerprint"] else None
    if manifest is None:
        raise UserError(
            f"stage '{stage}' of run {run.id} has no result ({status['state']}: {status['reason'] or 'not finished'})",
            f"submit the recipe again to go on; `orch logs {run.id} {stage}` shows what happened",
        )
    return manifest


@dataclass(frozen=True)
class Ancestor:
    """An artifact in a lineage tree: how it is used (`teacher`, `data`), and what it was made from in turn.

    `manifest` is None for external artifacts and for those that are no longer in the store.
    """

    role: str
    name: str
    kind: str
    fingerprint: str
    manifest: Manifest | None
    inputs: tuple[Ancestor, ...] = field(default=())


def lineage(store: Store, manifest: Manifest, role: str = "") -> Ancestor:
    """What an artifact was made from, all the way back to the data."""
    inputs = []
    for path, use in manifest.inputs.items():
        found = store.find(use["kind"], use["fingerprint"])
        if found is not None:
            inputs.append(lineage(store, found, path))
        else:
            inputs.append(Ancestor(path, use["name"], use["kind"], use["fingerprint"], None))
    return Ancestor(role, manifest.stage, manifest.kind, manifest.fingerprint, manifest, tuple(inputs))


def used_by(store: Store, manifest: Manifest) -> Iterator[tuple[str, Manifest]]:
    """Artifacts made directly from this one, each with the role it plays there."""
    for other in store.manifests():
        for path, use in other.inputs.items():
            if use["fingerprint"] == manifest.fingerprint:
                yield path, other
