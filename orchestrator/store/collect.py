"""Garbage collection: deletes what garbage.py found, without harm to what begins meanwhile.

For each fingerprint its lease is taken and its manifest hidden first; then submissions and names that came after the
survey are looked at, and what they need is put back; only then files go. So whoever writes down that it needs an
artifact (a run's plan, a kept name) and then finds it, has it. A crash in the middle leaves what the next collection
finds: files without a manifest are no artifact.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from graphlib import TopologicalSorter

from orchestrator.errors import OrchError
from orchestrator.io.storage import Storage
from orchestrator.store.artifacts import READERS, Store
from orchestrator.store.garbage import CATEGORIES, Garbage, Survey, fingerprints
from orchestrator.store.keep import list_kept
from orchestrator.store.leases import Held, acquire
from orchestrator.store.lineage import inputs
from orchestrator.store.runs import Run, list_runs

BATCH = 32
"""Fingerprints that are hidden, looked after and deleted together."""


@dataclass
class Collected:
    """What a deletion did: (things, bytes) by category, and what was left and why."""

    deleted: dict[str, tuple[int, int]] = field(default_factory=lambda: dict.fromkeys(CATEGORIES, (0, 0)))
    left: list[tuple[str, str]] = field(default_factory=list)

    def count(self, garbage: Garbage) -> None:
        """Note one that is gone."""
        number, size = self.deleted[garbage.category]
        self.deleted[garbage.category] = number + 1, size + garbage.size


def store_time(storage: Storage) -> float:
    """Now by the clock that dates the store's objects (Unix seconds); writes a probe and removes it."""
    key = f"leases/probe-{secrets.token_hex(8)}"
    storage.put(key, b"")
    info = storage.head(key)
    storage.delete(key)
    return time.time() if info is None else info.modified


def collect(store: Store, found: Survey) -> Collected:
    """Delete what a survey found. OrchError, and nothing is deleted, while a manifest is damaged."""
    if found.lineage.damaged:
        first = next(iter(found.lineage.damaged.values()))
        raise OrchError(
            f"{len(found.lineage.damaged)} manifests cannot be read, so what they need is not known: {first.message}",
            first.remedy,
        )
    done = Collected()
    grouped: dict[str, list[Garbage]] = defaultdict(list)
    for each in found.garbage:
        if each.fingerprint is not None:
            grouped[each.fingerprint].append(each)
    with ThreadPoolExecutor(READERS) as pool:
        for level in _levels(grouped):
            for start in range(0, len(level), BATCH):
                _delete_batch(store, found, {f: grouped[f] for f in level[start : start + BATCH]}, done, pool)
    rest = [each for each in found.garbage if each.fingerprint is None]
    new = _wanted_since(store, found)
    for each in rest:
        if new is not None and each.category == "sources":
            done.left.append((each.what, "a submission that came meanwhile may read it"))
            continue
        _delete(store.storage, each)
        done.count(each)
    return done


def _levels(grouped: Mapping[str, list[Garbage]]) -> list[list[str]]:
    """Fingerprints in the order to delete them: what was made from something goes before that, so that a crash leaves
    no artifact without what it was made from. Those of one level have nothing to do with each other.
    """
    manifests = {f: g.manifest for f, things in grouped.items() for g in things if g.manifest is not None}
    sorter = TopologicalSorter({f: [u.fingerprint for u in inputs(m)] for f, m in manifests.items()})
    sorter.prepare()
    levels = []
    while sorter.is_active():
        ready = sorter.get_ready()
        sorter.done(*ready)
        levels.append([fingerprint for fingerprint in ready if fingerprint in manifests])
    return [[fingerprint for fingerprint in grouped if fingerprint not in manifests], *reversed(levels)]


def _delete(storage: Storage, garbage: Garbage) -> None:
    storage.delete_many(garbage.keys)
    if garbage.place is not None:
        storage.remove_empty(garbage.place)
    if garbage.path is not None:
        garbage.path.unlink(missing_ok=True)


def _delete_batch(
    store: Store, found: Survey, batch: Mapping[str, list[Garbage]], done: Collected, pool: ThreadPoolExecutor
) -> None:
    """Take the leases, hide the manifests, look who wants them now, put those back and delete the others."""
    storage = store.storage
    with ExitStack() as stack:
        taken: list[str] = []
        for fingerprint, lease in zip(batch, pool.map(lambda f: acquire(store, f), batch)):
            if isinstance(lease, Held):
                why = f"process {lease.by.pid} on {lease.by.host} is at work on it"
                done.left += [(each.what, why) for each in batch[fingerprint]]
            else:
                stack.callback(lease.release)
                taken.append(fingerprint)
        hidden = dict(zip(taken, pool.map(lambda f: _hide(storage, batch[f]), taken)))
        wanted = _wanted_since(store, found) or set()

        def finish(fingerprint: str) -> str:
            manifest = hidden[fingerprint]
            if manifest is not None and manifest.changed:
                return "it was made anew meanwhile"
            if fingerprint in wanted:
                if manifest is not None:
                    storage.create(manifest.key, manifest.data, durable=True)
                return "a submission or `orch keep` that came meanwhile needs it"
            for each in batch[fingerprint]:
                _delete(storage, each)
            return ""

        for fingerprint, why in zip(taken, pool.map(finish, taken)):
            for each in batch[fingerprint]:
                if why:
                    done.left.append((each.what, why))
                else:
                    done.count(each)


@dataclass(frozen=True)
class _Hidden:
    """A manifest that was there; still there if it is not the one that was surveyed."""

    key: str
    data: bytes
    changed: bool


def _hide(storage: Storage, things: list[Garbage]) -> _Hidden | None:
    """Delete the manifest where an artifact goes; what is needed to put it back."""
    manifest = next((each.manifest for each in things if each.manifest), None)
    if manifest is None:
        return None
    key = f"{manifest.kind}/{manifest.fingerprint}/manifest.json"
    try:
        data = storage.get(key)
    except FileNotFoundError:
        return None
    changed = json.loads(data)["attempt"] != manifest.attempt
    if not changed:
        storage.delete(key)
    return _Hidden(key, data, changed)


def _wanted_since(store: Store, found: Survey) -> set[str] | None:
    """What runs and names that came after the survey need; None if none came.

    A run whose plan is not written yet has not looked for artifacts either: it will find what is there then.
    """
    runs = [run for run in list_runs(store) if run.id not in found.runs]
    kept = [each for each in list_kept(store.storage) if each.name not in found.kept]
    if not runs and not kept:
        return None
    wanted = set().union(*(fingerprints(run) for run in runs))
    for each in kept:
        wanted |= fingerprints(Run(store, each.run)) if each.run else {str(each.fingerprint)}
    return wanted | set(found.lineage.ancestors(wanted))
