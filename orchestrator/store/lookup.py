"""Finding things by what a person types.

A run: its id, a part of it that no other has, `last`. An artifact: `RUN/STAGE`, a fingerprint's first characters, a
stage's name (of the newest run that has it). Either: the name it is kept under. Something external, such as a data
set's source, is found by its name or its content digest in the lineage (lineage.py).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from orchestrator.errors import UserError
from orchestrator.store.artifacts import READERS, RESERVED, Manifest, Store
from orchestrator.store.keep import find_kept
from orchestrator.store.runs import Run, find_run, list_runs

SHORTEST = 6
"""Characters of a fingerprint that are taken as one."""


def find(store: Store, text: str) -> Run | Manifest:
    """The run or the artifact that `text` names; UserError if there is none, it is not finished, or several match."""
    runs = list_runs(store)
    if text == "last" or any(run.id == text for run in runs):
        return find_run(store, text)
    kept = find_kept(store.storage, text)
    if kept is not None:
        return find_run(store, kept.run) if kept.run else _kept(store, text, str(kept.kind), str(kept.fingerprint))
    of, slash, stage = text.rpartition("/")
    if slash:
        return _of_run(store, find_run(store, of), stage)
    by_fingerprint = _by_fingerprint(store, text)
    if by_fingerprint is not None:
        return by_fingerprint
    for run in runs:
        if text in run.state().get("stages", {}):
            return _of_run(store, run, text)
    if any(text in run.id for run in runs):
        return find_run(store, text)
    raise UserError(
        f"nothing in {store.url} is called '{text}'",
        "name a run (`orch status`), a stage, RUN/STAGE, the first characters of a fingerprint, "
        "or what `orch keep --list` shows",
    )


def find_artifact(store: Store, text: str) -> Manifest:
    """The artifact that `text` names; UserError as from `find`, or if it is a run."""
    found = find(store, text)
    if isinstance(found, Run):
        raise UserError(f"'{text}' is a run", f"name one of its stages: {found.id}/STAGE (`orch show {found.id}`)")
    return found


def run_artifacts(store: Store, run: Run) -> dict[str, Manifest]:
    """The finished artifacts of a run, made there or found there, by stage."""
    stages = run.plan()["stages"]
    found = {name: store.find(s["kind"], s["fingerprint"]) for name, s in stages.items() if s["fingerprint"]}
    return {name: manifest for name, manifest in found.items() if manifest is not None}


def runs_with(store: Store, fingerprint: str) -> list[Run]:
    """Runs that asked for this artifact, newest first."""
    runs = list_runs(store)
    with ThreadPoolExecutor(READERS) as pool:
        return [run for run, has in zip(runs, pool.map(lambda run: _asks_for(run, fingerprint), runs)) if has]


def _asks_for(run: Run, fingerprint: str) -> bool:
    return any(stage["fingerprint"] == fingerprint for stage in run.plan()["stages"].values())


def _kept(store: Store, name: str, kind: str, fingerprint: str) -> Manifest:
    manifest = store.find(kind, fingerprint)
    if manifest is None:
        raise UserError(
            f"what is kept as '{name}' is not in {store.url} any more: {kind} {fingerprint[:12]}",
            f"submit the recipe that makes it, or `orch keep --drop {name}`",
        )
    return manifest


def _by_fingerprint(store: Store, text: str) -> Manifest | None:
    if len(text) < SHORTEST or not set(text) <= set("0123456789abcdef"):
        return None
    places = [
        (kind, fingerprint)
        for kind in store.storage.children("")
        if kind not in RESERVED
        for fingerprint in store.storage.children(kind)
        if fingerprint.startswith(text)
    ]
    found = [manifest for manifest in (store.find(*place) for place in places) if manifest is not None]
    if len(found) > 1:
        names = ", ".join(f"{m.fingerprint[:12]} ({m.stage})" for m in found[:5])
        raise UserError(f"'{text}' begins {len(found)} fingerprints: {names}", "write more of it")
    return found[0] if found else None


def _of_run(store: Store, run: Run, stage: str) -> Manifest:
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
