"""Whether every byte is still what was published: hashes all files anew, in parallel and in constant memory.

Looks at the files that manifests name (missing, damaged), at what lies beside them (unexpected), at manifests that
cannot be read, and at complete checkpoints by their markers. Deletes nothing: each problem says what to do.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from orchestrator.errors import OrchError
from orchestrator.io.storage import Storage
from orchestrator.store.artifacts import Manifest, Store
from orchestrator.store.checkpoints import MARKER, CheckpointStore

HASHERS = min(8, 2 * (os.cpu_count() or 1))
"""Files that are read at once; hashing releases the interpreter's lock."""


@dataclass(frozen=True)
class Problem:
    """One file, manifest or checkpoint that is not as it was published, and the way out."""

    key: str
    how: str
    stage: str
    run: str
    remedy: str


@dataclass(frozen=True)
class Checked:
    """What was looked at: files, bytes, and what was wrong."""

    files: int
    size: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class _File:
    """A file and what is published of it."""

    key: str
    size: int
    sha256: str
    owner: str
    """The manifest or marker that names it; without it the file may go."""
    stage: str
    run: str
    remedy: str


def verify(store: Store, on_bytes: Callable[[int], None] = lambda num_bytes: None) -> Checked:
    """Hash everything; `on_bytes` is told of each piece that was read, from several threads."""
    storage = store.storage
    manifests, damaged = store.afresh().survey()
    problems = [
        Problem(f"manifest of {fingerprint[:12]}", error.message, "", "", error.remedy)
        for fingerprint, error in damaged.items()
    ]
    with ThreadPoolExecutor(HASHERS) as pool:
        wanted = [file for manifest in manifests for file in _files(storage, manifest)]
        for unexpected in pool.map(lambda manifest: list(_unexpected(storage, manifest)), manifests):
            problems += unexpected
        for found in pool.map(lambda name: _checkpoint_files(storage, name), storage.children("work")):
            wanted += [each for each in found if isinstance(each, _File)]
            problems += [each for each in found if isinstance(each, Problem)]
        problems += [p for p in pool.map(lambda file: _check(storage, file, on_bytes), wanted) if p is not None]
    return Checked(len(wanted), sum(file.size for file in wanted), tuple(problems))


def _files(storage: Storage, manifest: Manifest) -> Iterator[_File]:
    owner = f"{manifest.kind}/{manifest.fingerprint}/manifest.json"
    place = storage.where(owner.rpartition("/")[0])
    remedy = f"delete {place} and submit its recipe again: the stage is computed anew"
    for name, file in manifest.files.items():
        yield _File(f"{manifest.prefix}/{name}", file.size, file.sha256, owner, manifest.stage, manifest.run, remedy)


def _unexpected(storage: Storage, manifest: Manifest) -> Iterator[Problem]:
    """Files in a published attempt's place that its manifest does not name."""
    for info in storage.list(manifest.prefix):
        if info.key.removeprefix(f"{manifest.prefix}/") not in manifest.files:
            remedy = "nothing reads it; delete it, and find out who wrote there"
            yield Problem(info.key, "is not in the manifest", manifest.stage, manifest.run, remedy)


def _checkpoint_files(storage: Storage, fingerprint: str) -> list[_File | Problem]:
    """Files of a stage's complete checkpoints, by their markers."""
    found: list[_File | Problem] = []
    for ref in CheckpointStore(storage, fingerprint, 0).complete():
        stage, marker = f"checkpoint of {fingerprint[:12]}", f"{ref.prefix}/{MARKER}"
        remedy = f"delete {storage.where(ref.prefix)} and submit again: work goes on from the checkpoint before it"
        try:
            files = json.loads(storage.get(marker))["files"]
            found += [
                _File(f"{ref.prefix}/{name}", facts["size"], facts["sha256"], marker, stage, "", remedy)
                for name, facts in files.items()
            ]
        except FileNotFoundError:
            continue  # superseded meanwhile
        except (ValueError, KeyError, TypeError):
            found.append(Problem(marker, "is not a readable marker", stage, "", remedy))
    return found


def _check(storage: Storage, file: _File, on_bytes: Callable[[int], None]) -> Problem | None:
    digest, size = hashlib.sha256(), 0
    how = ""
    try:
        for chunk in storage.stream(file.key):
            digest.update(chunk)
            size += len(chunk)
            on_bytes(len(chunk))
    except FileNotFoundError:
        how = "is missing"
    except OrchError as error:
        how = f"cannot be read: {error.message}"
    else:
        if size != file.size:
            how = f"has {size} bytes instead of {file.size}"
        elif digest.hexdigest() != file.sha256:
            how = "does not have the content that was published"
    if not how or storage.head(file.owner) is None:  # collected or superseded while we read
        return None
    return Problem(file.key, how, file.stage, file.run, file.remedy)
