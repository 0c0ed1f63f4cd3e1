"""What nobody needs any more, found by lineage: the half of garbage collection that only looks.

Roots are what is kept (keep.py), models registered with MLflow, runs at work, and everything young. A root stays with
all it was made from. What else is old is garbage, by category:

    artifacts     finished, and no root needs them          attempts     begun, and did not become the artifact
    checkpoints   of finished stages; superseded or incomplete ones of unfinished stages
    work          events, logs and all checkpoints of stages that no remaining run names and that have no artifact
    sources       indexes (and shards copied in) that no remaining data set refers to
    runs          records of submissions of which nothing remains          leftovers   of killed processes, probes

The highest complete checkpoint of an unfinished stage is what a new submission goes on from: it stays as long as a
run that asked for the stage does.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from orchestrator.io.storage import Info, Storage
from orchestrator.store.artifacts import READERS, RESERVED, Manifest, Store
from orchestrator.store.checkpoints import MARKER, CheckpointStore
from orchestrator.store.keep import Kept, list_kept
from orchestrator.store.leases import holder, is_released
from orchestrator.store.lineage import Lineage, inputs
from orchestrator.store.runs import Run, engine_is_gone, list_runs

CATEGORIES = ("artifacts", "attempts", "checkpoints", "work", "sources", "runs", "leftovers")

DAY_S = 86400.0
SILENT_S = DAY_S
"""A lease without a heartbeat for so long is dead, whatever time to live it was given."""
FINAL = frozenset({"cached", "done", "failed", "stopped", "skipped"})
"""States of a stage in a run's record after which nothing comes."""
JUST_WRITTEN_S = 3600.0
"""A run whose state was written so lately is at work even if no lease shows it: it may be between two attempts."""

_ARTIFACT = re.compile(r"[^/]+/([0-9a-f]{64})/(manifest\.json|attempts/([^/]+)/.+)")
_WORK = re.compile(r"work/([^/]+)/(?:(\d+)/(ckpt-(\d+)/(.+))?)?")
_SOURCE = re.compile(r"(sources/[^/]+?)(?:\.json|/.+)")
_TEMPORARY = re.compile(r"#\d+$|^\.part-[0-9a-f]{16}$")  # on a local disk: obstore's, never listed, and `create`'s


@dataclass(frozen=True)
class Garbage:
    """Something that goes: its objects' keys, their bytes, and when the newest was written (Unix seconds)."""

    category: str
    what: str
    keys: tuple[str, ...]
    size: int
    modified: float
    fingerprint: str | None = None
    """Whose lease is taken before it is deleted."""
    place: str | None = None
    """Prefix whose empty directories go too."""
    manifest: Manifest | None = None
    """Of an artifact: hidden first."""
    path: Path | None = None
    """A file that is no object of the store."""


@dataclass
class Survey:
    """What would go and what stays.

    Attributes:
        because: fingerprint of every artifact that stays -> the root that needs it.
        runs: ids of the runs that were there; those that come later are looked at before anything is deleted.
        kept: names that were kept.
    """

    lineage: Lineage
    garbage: list[Garbage]
    because: dict[str, str]
    runs: frozenset[str]
    kept: frozenset[str]

    def by_category(self) -> dict[str, tuple[int, int]]:
        """(things, bytes) by category."""
        found = dict.fromkeys(CATEGORIES, (0, 0))
        for each in self.garbage:
            number, size = found[each.category]
            found[each.category] = number + 1, size + each.size
        return found

    def stays(self) -> dict[str, tuple[int, int]]:
        """(artifacts, bytes) by root; an artifact that several need is counted with the first."""
        found: dict[str, tuple[int, int]] = {}
        for fingerprint, root in self.because.items():
            number, size = found.get(root, (0, 0))
            manifest = self.lineage.artifacts.get(fingerprint)
            found[root] = number + 1, size + (manifest.size if manifest else 0)
        return found


def survey(store: Store, older_than_s: float, registered: Mapping[str, str], now: float | None = None) -> Survey:
    """Find what would go; writes nothing.

    Args:
        store: where.
        older_than_s: nothing younger than so many seconds goes, nor what it was made from.
        registered: fingerprint or run id -> what to call it, of what MLflow's registered models came from.
        now: Unix seconds by the store's clock (collect.py's `store_time`); this machine's by default.
    """
    now = time.time() if now is None else now
    before = now - older_than_s
    storage = store.storage
    tops = [*(name for name in storage.children("") if name not in RESERVED), "work", "sources", "leases", "runs"]
    with ThreadPoolExecutor(READERS) as pool:
        listed = dict(zip(tops, pool.map(lambda top: list(storage.list(top)), tops)))
        lineage = Lineage.read(store.afresh())
        live = _live(storage, listed["leases"], now, pool)
        kept = list_kept(storage)
        runs = _Runs.read(store, listed["runs"], kept, registered, live, before, now, pool)
    objects = _Objects.of([info for top in tops[:-4] for info in listed[top]], listed["work"])

    roots: dict[str, list[str]] = {}
    for each in kept:
        if each.fingerprint is not None:
            roots.setdefault(f"kept as {each.name}", []).append(each.fingerprint)
    for name, called in registered.items():
        roots.setdefault(called, []).append(name)
    for run, reason in runs.staying.items():
        roots.setdefault(reason, []).extend(sorted(runs.plans[run]))
    roots.setdefault("being made now", []).extend(sorted(live))
    young = {f for f, info in objects.manifests.items() if info.modified > before}
    roots.setdefault("young", []).extend(sorted(young | lineage.artifacts.keys() - objects.manifests.keys()))

    because = _reach(lineage, roots)
    remaining = [m for f in because if (m := lineage.artifacts.get(f)) is not None]
    wanted = live.union(*(runs.plans[run] for run in runs.staying))
    garbage = [
        *_artifacts(objects, lineage, because, live, before),
        *_work(storage, objects, lineage, because, live, wanted, before),
        *_sources(storage, listed["sources"], remaining, before),
        *_records(listed["runs"], {*runs.staying, *(manifest.run for manifest in remaining)}, before),
        *_leases(listed["leases"], before),
        *_temporary(storage, tops, before),
    ]
    return Survey(lineage, garbage, because, frozenset(runs.ids), frozenset(each.name for each in kept))


@dataclass
class _Runs:
    """Submissions: all ids, why some stay, and the fingerprints that those asked for."""

    ids: list[str]
    staying: dict[str, str]
    plans: dict[str, set[str]]

    @classmethod
    def read(
        cls,
        store: Store,
        listed: Iterable[Info],
        kept: Iterable[Kept],
        registered: Mapping[str, str],
        live: set[str],
        before: float,
        now: float,
        pool: ThreadPoolExecutor,
    ) -> _Runs:
        written = _newest(listed, lambda info: info.key.split("/")[1])
        runs = [run for run in list_runs(store) if run.id in written]
        staying = {each.run: f"kept as {each.name}" for each in kept if each.run in written}
        staying |= {run.id: registered[run.id] for run in runs if run.id in registered and run.id not in staying}
        recent = [run for run in runs if written[run.id] > now - JUST_WRITTEN_S]
        at_work = {run.id for run, going_on in zip(recent, pool.map(_unfinished, recent)) if going_on}
        for run in runs:
            if run.id in at_work:
                staying.setdefault(run.id, f"run {run.id} is at work")
            elif written[run.id] > before:
                staying.setdefault(run.id, f"run {run.id} is young")
        chosen = [run for run in runs if run.id in staying]
        plans = dict(zip((run.id for run in chosen), pool.map(fingerprints, chosen)))
        if live - set().union(*plans.values()):  # an old run is still at work
            older = [run for run in runs if run.id not in staying]
            for run, plan in zip(older, pool.map(fingerprints, older)):
                if plan & live:
                    staying[run.id], plans[run.id] = f"run {run.id} is at work", plan
        return cls([run.id for run in runs], staying, plans)


def _reach(lineage: Lineage, roots: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Everything that roots need, each with the first root that does."""
    because: dict[str, str] = {}
    for root, fingerprints in roots.items():
        for fingerprint in lineage.ancestors(fingerprints):
            because.setdefault(fingerprint, root)
    return because


@dataclass
class _Objects:
    """The listing of artifacts and work, by fingerprint."""

    manifests: dict[str, Info]
    attempts: dict[str, dict[str, list[Info]]]
    """Fingerprint -> attempt -> its files."""
    places: dict[str, str]
    """Fingerprint -> `<kind>/<fingerprint>`."""
    work: dict[str, list[Info]]

    @classmethod
    def of(cls, artifacts: Iterable[Info], work: Iterable[Info]) -> _Objects:
        found = cls({}, defaultdict(lambda: defaultdict(list)), {}, defaultdict(list))
        for info in artifacts:
            match = _ARTIFACT.fullmatch(info.key)
            if match is None:
                continue  # nothing of ours
            fingerprint, _, attempt = match.groups()
            found.places[fingerprint] = info.key[: match.end(1)]
            if attempt is None:
                found.manifests[fingerprint] = info
            else:
                found.attempts[fingerprint][attempt].append(info)
        for info in work:
            found.work[info.key.split("/")[1]].append(info)
        return found


def _artifacts(
    objects: _Objects, lineage: Lineage, because: Mapping[str, str], live: set[str], before: float
) -> Iterator[Garbage]:
    """Artifacts that nothing needs, and attempts that lost or were never published."""
    for fingerprint, place in objects.places.items():
        if fingerprint in live or fingerprint in lineage.damaged:
            continue
        manifest, attempts = lineage.artifacts.get(fingerprint), objects.attempts.get(fingerprint, {})
        if manifest is not None and fingerprint not in because:
            files = [objects.manifests[fingerprint], *(info for infos in attempts.values() for info in infos)]
            what = f"{manifest.kind} '{manifest.stage}' {fingerprint[:12]} of run {manifest.run}"
            yield _garbage("artifacts", what, files, fingerprint, place, manifest)
            continue
        for attempt, files in attempts.items():
            if (manifest is None or attempt != manifest.attempt) and _all_older(files, before):
                what = f"attempt {attempt} at {place[: -64 + 12]}"
                yield _garbage("attempts", what, files, fingerprint, f"{place}/attempts")


def _work(
    storage: Storage,
    objects: _Objects,
    lineage: Lineage,
    because: Mapping[str, str],
    live: set[str],
    wanted: set[str],
    before: float,
) -> Iterator[Garbage]:
    """Checkpoints nobody goes on from, and the work of stages of which nothing else remains."""
    for fingerprint, files in objects.work.items():
        if fingerprint in live or fingerprint in lineage.damaged:
            continue
        place, short = f"work/{fingerprint}", fingerprint[:12]
        finished = fingerprint in lineage.artifacts
        if (finished and fingerprint not in because) or (not finished and fingerprint not in wanted):
            if finished or _all_older(files, before):
                yield _garbage("work", f"events, logs and checkpoints of {short}", files, fingerprint, place)
            continue
        parts = [info for info in files if info.key.startswith(f"{place}/parts/")]
        if finished and parts and _all_older(parts, before):
            yield _garbage("checkpoints", f"parts of the work of {short}", parts, fingerprint, f"{place}/parts")
        latest = None if finished else CheckpointStore(storage, fingerprint, 0).latest()
        best = None if latest is None else (latest.generation, latest.samples)
        for key, infos in _checkpoints(files).items():
            if key != best and _all_older(infos, before):
                what = f"checkpoint of {short} at {key[1]:,} samples, generation {key[0]}"
                yield _garbage("checkpoints", what, infos, fingerprint, f"{place}/{key[0]}")


def _checkpoints(files: Iterable[Info]) -> dict[tuple[int, int], list[Info]]:
    """(generation, samples) -> files; the marker first, so that it is also the first to go."""
    found: dict[tuple[int, int], list[Info]] = defaultdict(list)
    for info in files:
        match = _WORK.match(info.key)
        if match is not None and match[3]:
            found[int(match[2]), int(match[4])].append(info)
    return {k: sorted(infos, key=lambda i: not i.key.endswith(f"/{MARKER}")) for k, infos in found.items()}


def _sources(
    storage: Storage, listed: Iterable[Info], remaining: Iterable[Manifest], before: float
) -> Iterator[Garbage]:
    """Places under `sources/` that no remaining artifact needs, and whose data none was made from."""
    remaining = list(remaining)
    needed = {place for manifest in remaining for place in manifest.summary.get("needs") or ()}
    digests = {use.fingerprint for manifest in remaining for use in inputs(manifest) if use.external}
    by_place: dict[str, list[Info]] = defaultdict(list)
    for info in listed:
        if match := _SOURCE.fullmatch(info.key):
            by_place[match[1]].append(info)
    for place, files in by_place.items():
        if place not in needed and _all_older(files, before) and _digest(storage, place) not in digests:
            marker_first = sorted(files, key=lambda info: not info.key.endswith(".json"))
            yield _garbage("sources", place, marker_first, place=place)


def _digest(storage: Storage, place: str) -> str | None:
    """What an indexed source is known by; None where indexing has not come to its end."""
    try:
        return json.loads(storage.get(f"{place}.json"))["content_digest"]
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _records(listed: Iterable[Info], staying: Collection[str], before: float) -> Iterator[Garbage]:
    """Records of runs that nobody needs and that made nothing of what remains."""
    by_run: dict[str, list[Info]] = defaultdict(list)
    for info in listed:
        by_run[info.key.split("/")[1]].append(info)
    for run, files in by_run.items():
        if run not in staying and _all_older(files, before):
            yield _garbage("runs", f"run {run}", files, place=f"runs/{run}")


def _leases(listed: Iterable[Info], before: float) -> Iterator[Garbage]:
    """Probes, and generations below the highest, which stays for good: the fencing number must never begin again."""
    by_fingerprint: dict[str, list[Info]] = defaultdict(list)
    for info in listed:
        by_fingerprint[info.key.split("/")[1]].append(info)
    for fingerprint, infos in by_fingerprint.items():
        highest = max((n for info in infos if (n := _generation(info)) is not None), default=None)
        old = [info for info in infos if _generation(info) != highest and info.modified <= before]
        if old:
            yield _garbage("leftovers", f"old leases of {fingerprint[:12]}", old)


def _temporary(storage: Storage, tops: Iterable[str], before: float) -> Iterator[Garbage]:
    """Half-written files that killed processes left on a local disk."""
    for top in tops:
        root = storage.local(top)
        for folder, _, names in os.walk(root) if root is not None else ():
            for name in names:
                if _TEMPORARY.search(name):
                    path = Path(folder) / name
                    facts = path.stat()
                    if facts.st_mtime <= before:
                        yield Garbage(
                            "leftovers", f"half-written {path}", (), facts.st_size, facts.st_mtime, path=path
                        )


def _live(storage: Storage, leases: Iterable[Info], now: float, pool: ThreadPoolExecutor) -> set[str]:
    """Fingerprints that somebody works on. Most leases are old or released: one request tells, or none."""
    highest: dict[str, tuple[int, Info]] = {}
    for info in leases:
        fingerprint, generation = info.key.split("/")[1], _generation(info)
        if generation is not None and generation > highest.get(fingerprint, (0, info))[0]:
            highest[fingerprint] = generation, info
    recent = [info for _, info in highest.values() if info.modified > now - SILENT_S]

    def held(info: Info) -> str | None:
        fingerprint = info.key.split("/")[1]
        if is_released(storage.get(info.key)):
            return None
        return fingerprint if holder(storage, fingerprint) is not None else None

    return {fingerprint for fingerprint in pool.map(held, recent) if fingerprint is not None}


def fingerprints(run: Run) -> set[str]:
    """Of all stages that a run asked for; nothing where its plan was not written."""
    return {str(stage["fingerprint"]) for stage in run.plan()["stages"].values() if stage["fingerprint"]}


def _unfinished(run: Run) -> bool:
    """Whether a run may be going on by what its engine wrote last."""
    state = run.state()
    states = {stage["state"] for stage in state.get("stages", {}).values()}
    return (not states or not states <= FINAL) and not engine_is_gone(state)


def _newest(listed: Iterable[Info], key: Callable[[Info], str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for info in listed:
        found[key(info)] = max(found.get(key(info), 0.0), info.modified)
    return found


def _generation(info: Info) -> int | None:
    name = info.key.rpartition("/")[2]
    return int(name) if name.isdigit() else None


def _all_older(files: Iterable[Info], before: float) -> bool:
    return all(info.modified <= before for info in files)


def _garbage(
    category: str,
    what: str,
    files: Iterable[Info],
    fingerprint: str | None = None,
    place: str | None = None,
    manifest: Manifest | None = None,
) -> Garbage:
    files = list(files)
    keys, size = tuple(info.key for info in files), sum(info.size for info in files)
    return Garbage(category, what, keys, size, max(i.modified for i in files), fingerprint, place, manifest)
