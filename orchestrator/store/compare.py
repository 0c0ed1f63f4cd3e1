"""What differs between two artifacts or two runs, field by field, and why.

Settings are compared by plan/diff.py. Where an input differs, its makers are compared in turn, down to the first
causes: not "upstream teacher" but "teacher: learning_rate 0.001 → 0.0005". Metrics, code, packages, host, cost and
seeds are compared beside them. Runs are compared stage by stage. The table of kinds is handed in, as to `plan`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.plan.diff import diff
from orchestrator.recipe.schema import Config
from orchestrator.store.artifacts import Manifest
from orchestrator.store.lineage import Use, inputs, seeds

Find = Callable[[str, str], Manifest | None]
"""(kind, fingerprint) to the finished artifact: `Store.find`."""
Kinds = Mapping[str, type[Config]]


@dataclass(frozen=True)
class Difference:
    """Two values of one thing; None where one side does not have it."""

    name: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Cause:
    """Why an input differs: the stage that is the first to differ, how it is reached, and what is different there."""

    stage: str
    path: tuple[str, ...]
    """References that lead to it, from the artifact compared: ("teacher", "data")."""
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Two artifacts: what differs, each field empty where nothing does."""

    a: str
    b: str
    same: bool
    """One artifact."""
    same_content: bool
    settings: tuple[str, ...] = ()
    seeds: tuple[Difference, ...] = ()
    causes: tuple[Cause, ...] = ()
    metrics: tuple[Difference, ...] = ()
    code: tuple[Difference, ...] = ()
    packages: tuple[Difference, ...] = ()
    host: tuple[Difference, ...] = ()
    cost: tuple[Difference, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class RunComparison:
    """Two runs by stage: a comparison, or why there is none."""

    a: str
    b: str
    stages: Mapping[str, Comparison | str]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        stages = {name: each if isinstance(each, str) else each.to_json() for name, each in self.stages.items()}
        return {"a": self.a, "b": self.b, "stages": stages}


def compare_artifacts(a: Manifest, b: Manifest, find: Find, kinds: Kinds) -> Comparison:
    """What differs between two artifacts, and between all that they were made from."""
    names = f"{a.stage} {a.fingerprint[:12]}", f"{b.stage} {b.fingerprint[:12]}"
    if a.fingerprint == b.fingerprint and a.attempt == b.attempt:
        return Comparison(*names, same=True, same_content=True)
    causes: list[Cause] = []
    _follow(a, b, (), find, kinds, set(), causes)
    return Comparison(
        *names,
        same=False,
        same_content=a.content_digest == b.content_digest,
        settings=_settings(a, b, kinds),
        seeds=_different(seeds(a, kinds.get(a.kind)), seeds(b, kinds.get(b.kind))),
        causes=tuple(causes),
        metrics=_different(a.metrics, b.metrics),
        code=_different(_code(a), _code(b)),
        packages=_different(a.provenance.get("packages", {}), b.provenance.get("packages", {})),
        host=_different(_host(a), _host(b)),
        cost=_different(_cost(a), _cost(b)),
    )


def compare_runs(
    a: tuple[str, Mapping[str, Any]], b: tuple[str, Mapping[str, Any]], find: Find, kinds: Kinds
) -> RunComparison:
    """What differs between two runs, each given as its id and its plan's stages."""
    (name_a, stages_a), (name_b, stages_b) = a, b
    found: dict[str, Comparison | str] = {}
    for stage in dict.fromkeys([*stages_a, *stages_b]):
        if stage not in stages_a or stage not in stages_b:
            found[stage] = f"only in {name_a if stage in stages_a else name_b}"
            continue
        one, other = (find(s["kind"], s["fingerprint"]) for s in (stages_a[stage], stages_b[stage]))
        if one is not None and other is not None:
            found[stage] = compare_artifacts(one, other, find, kinds)
        elif stages_a[stage]["fingerprint"] == stages_b[stage]["fingerprint"]:
            found[stage] = "the same, not finished"
        else:
            missing = [run for run, manifest in ((name_a, one), (name_b, other)) if manifest is None]
            found[stage] = f"different; not finished in {' and '.join(missing)}"
    return RunComparison(name_a, name_b, found)


def _follow(
    a: Manifest,
    b: Manifest,
    path: tuple[str, ...],
    find: Find,
    kinds: Kinds,
    seen: set[tuple[str, str]],
    causes: list[Cause],
) -> None:
    """Add what makes the inputs of two artifacts differ; those nearest first, each once."""
    theirs = {use.role: use for use in inputs(b)}
    for mine in inputs(a):
        other = theirs.get(mine.role)
        if other is None or mine.fingerprint == other.fingerprint or (mine.fingerprint, other.fingerprint) in seen:
            continue
        if mine.name != other.name and mine.kind != other.kind:
            continue  # another stage altogether: that is a setting, and was said
        seen.add((mine.fingerprint, other.fingerprint))
        here = (*path, mine.role)
        if mine.external or other.external:
            identities = f"{_outside(mine)} → {_outside(other)}"
            causes.append(Cause(mine.name, here, (identities,)))
            continue
        one, two = find(mine.kind, mine.fingerprint), find(other.kind, other.fingerprint)
        if one is None or two is None:
            gone = mine if one is None else other
            causes.append(Cause(mine.name, here, (f"{gone.fingerprint[:12]} is not in this store any more",)))
            continue
        own = _settings(one, two, kinds)
        if own:
            causes.append(Cause(mine.name, here, own))
        _follow(one, two, here, find, kinds, seen, causes)


def _outside(use: Use) -> str:
    return f"{use.name} ({use.fingerprint[:12]})" if use.external else f"{use.name} ({use.kind})"


def _settings(a: Manifest, b: Manifest, kinds: Kinds) -> tuple[str, ...]:
    """An artifact's own settings that differ; what differs because of its inputs is left to `_follow`."""
    if a.kind != b.kind:
        return (f"kind {a.kind} → {b.kind}",)
    if a.kind not in kinds:
        return () if a.payload == b.payload else ("settings of a kind that this version does not know",)
    names_a, names_b = ({key: str(use["name"]) for key, use in m.inputs.items()} for m in (a, b))
    lines = diff(a.payload, b.payload, kinds[a.kind], names_a, names_b)
    return tuple(x for x in lines if not x.startswith("upstream ") and x != "content of the external data")


def _code(manifest: Manifest) -> dict[str, Any]:
    code = manifest.provenance.get("code", {})
    return {"commit": code.get("commit"), "uncommitted changes": code.get("diff_sha256")}


def _host(manifest: Manifest) -> dict[str, Any]:
    budget = {name: manifest.provenance.get(name) for name in ("cpus", "gpus", "workers", "threads")}
    device = {"device": manifest.summary.get("device")}
    return {**manifest.provenance.get("host", {}), **{f"reserved {k}": v for k, v in budget.items()}, **device}


def _cost(manifest: Manifest) -> dict[str, float]:
    return {"work_s": round(manifest.wall_s, 3), **{k: round(v, 6) for k, v in asdict(manifest.cost).items()}}


def _different(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Difference, ...]:
    names = dict.fromkeys([*a, *b])
    return tuple(Difference(n, a.get(n), b.get(n)) for n in names if a.get(n) != b.get(n))
