"""Where everything comes from: each stage's inputs, settings, seeds, machine and cost; code and packages once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.report import words
from orchestrator.report.blocks import Block, Code, Facts, Fold, Table, Text
from orchestrator.report.record import RunRecord, StageRecord
from orchestrator.stages import KINDS
from orchestrator.store.artifacts import Manifest
from orchestrator.store.lineage import inputs, seeds


def show(run: RunRecord) -> Iterator[Block]:
    """A fold a stage, then what they share."""
    made = {stage.name: stage.manifest for stage in run.stages.values() if stage.manifest is not None}
    for stage in run.stages.values():
        if stage.manifest is not None:
            yield Fold(stage.name, list(_stage(run, stage, stage.manifest)), beside=f"{stage.fingerprint or ''}"[:12])
    yield from _code(made)
    yield from _packages(made)
    yield Fold("Recipe, as it was resolved", [Code(run.recipe)])


def _stage(run: RunRecord, stage: StageRecord, manifest: Manifest) -> Iterator[Block]:
    uses = [[u.role, run.name_of(u.fingerprint, u.name), u.kind, u.fingerprint[:16]] for u in inputs(manifest)]
    if uses:
        yield Table(("input", "is", "kind", "fingerprint"), uses, numbers=False)
    facts, host = manifest.provenance, manifest.provenance.get("host", {})
    budget = f"{facts.get('cpus', 0):g} CPUs, {facts.get('gpus', 0):g} GPUs, {facts.get('workers', 1)} workers"
    pairs = [
        ("fingerprint", manifest.fingerprint),
        ("content", manifest.content_digest),
        ("seeds", ", ".join(f"{name} {value}" for name, value in _seeds(stage, manifest).items())),
        ("made by run", manifest.run + (" (reused here)" if manifest.run != run.id else "")),
        ("command", " ".join(facts.get("argv", []))),
        ("code", commit(facts.get("code", {}))),
        ("machine", ", ".join(filter(None, [host.get("name"), host.get("platform"), f"Python {host.get('python')}"]))),
        ("budget", budget),
        ("worked", f"{words.moment(manifest.started)}, {words.duration(manifest.wall_s)}"),
        ("cost", words.hours(manifest.cost.cpu_hours, manifest.cost.gpu_hours)),
        ("files", f"{len(manifest.files)}, {words.size(manifest.size)}"),
    ]
    yield Facts([pair for pair in pairs if pair[1]])
    identity = {name: value for name, value in manifest.payload.items() if value not in ({}, [], None)}
    yield Code(json.dumps(identity, indent=1, ensure_ascii=False), title="Identity: what the fingerprint is made of")


def _seeds(stage: StageRecord, manifest: Manifest) -> dict[str, int]:
    return seeds(manifest, KINDS.get(stage.kind))


def _code(made: Mapping[str, Manifest]) -> Iterator[Block]:
    """Each state of the code, once, with its uncommitted difference."""
    states: dict[tuple[str, str], list[str]] = {}
    codes: dict[tuple[str, str], Mapping[str, Any]] = {}
    for name, manifest in made.items():
        code = manifest.provenance.get("code", {})
        key = (str(code.get("commit", "")), str(code.get("diff_sha256", "")))
        states.setdefault(key, []).append(name)
        codes[key] = code
    for key, stages in states.items():
        code, whose = codes[key], _whose(stages, made)
        if not code.get("commit"):
            yield Text(f"Code of {whose}: not from a git checkout.")
        elif not code.get("diff"):
            yield Text(f"Code of {whose}: commit {commit(code)}.")
        else:
            cut = " (cut off)" if code.get("diff_truncated") else ""
            title = f"Code of {whose}: commit {commit(code)}{cut}"
            yield Fold(title, [Code(code["diff"], diff=True)], beside=f"difference {code['diff_sha256'][:12]}")


def _packages(made: Mapping[str, Manifest]) -> Iterator[Block]:
    """Each set of versions, once."""
    sets: dict[str, list[str]] = {}
    for name, manifest in made.items():
        sets.setdefault(json.dumps(manifest.provenance.get("packages", {}), sort_keys=True), []).append(name)
    for packages, stages in sets.items():
        versions = json.loads(packages)
        if versions:
            yield Fold(f"Packages of {_whose(stages, made)}", [Facts(list(versions.items()))])


def _whose(stages: list[str], made: Mapping[str, Manifest]) -> str:
    return "all stages" if len(stages) == len(made) > 1 else words.some(stages)


def commit(code: Mapping[str, Any]) -> str:
    """A commit as people write it; "" outside of a checkout."""
    if not code.get("commit"):
        return ""
    return code["commit"][:12] + (" with uncommitted changes" if code.get("dirty") else "")
