"""Where a running stage keeps its checkpoints, and how it finds the last complete one.

    <root>/work/<fingerprint>/<generation>/ckpt-<samples>/...    written by that generation's holder only, marker last

Resume takes the highest complete checkpoint of any generation; an incomplete one does not exist. Only who holds the
lease deletes: a process that was overtaken (stopped for an hour, say) and wakes must not take away what its successor
goes on from. What is inside is the training loop's business (training/checkpoint.py); here are only names, atomicity
and retention.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchError, StoreAway
from orchestrator.io.storage import Storage, check_key, sync
from orchestrator.store.leases import current_generation

MARKER = "complete.json"


@dataclass(frozen=True)
class CheckpointRef:
    """A complete checkpoint: samples seen, generation that wrote it, and its prefix in the storage."""

    samples: int
    generation: int
    prefix: str


@dataclass(frozen=True)
class CheckpointStore:
    """One stage's checkpoints over all generations. Picklable; opened anew in each worker process."""

    storage: Storage
    fingerprint: str
    generation: int

    def save(self, samples: int, files: Mapping[str, bytes | Path]) -> CheckpointRef:
        """Write the files, then the marker (sizes and SHA-256 of each). Readers see all of it or nothing.

        On a local disk the files are there for good before the marker is: also after a power cut.
        A checkpoint of this generation at the same samples is replaced. Each file is hashed from what is given, so a
        Path must not change meanwhile. Where the store refuses (a full disk), what was written is taken away again.
        """
        if MARKER in files:
            raise ValueError(f"'{MARKER}' is the marker's own name")
        ref = CheckpointRef(samples, self.generation, f"{self._root}/{self.generation}/ckpt-{samples}")
        self.storage.delete(f"{ref.prefix}/{MARKER}")
        marker = {}
        try:
            for name, data in files.items():
                self.storage.put(check_key(f"{ref.prefix}/{name}"), data)
                marker[name] = _facts(data)
            self._settle(ref, files)
            about = json.dumps({"format": 1, "files": marker}, sort_keys=True).encode()
            self.storage.put(f"{ref.prefix}/{MARKER}", about)
            self._settle(ref, [MARKER])
        except (OrchError, OSError):
            with suppress(OrchError):
                self._delete(ref)
            raise
        return ref

    def latest(self) -> CheckpointRef | None:
        """The complete checkpoint with the most samples, of any generation; the newer generation wins a tie.

        One that a power cut has torn counts as incomplete: the one before it is taken.
        """
        return next((ref for ref in reversed(self.complete()) if self._is_whole(ref)), None)

    def complete(self) -> list[CheckpointRef]:
        """All complete checkpoints of all generations, those with the fewest samples first."""
        found = [ref for ref in self._places() if self.storage.head(f"{ref.prefix}/{MARKER}") is not None]
        return sorted(found, key=lambda ref: (ref.samples, ref.generation))

    def files(self, ref: CheckpointRef) -> dict[str, int]:
        """Names and sizes in bytes of a checkpoint's files."""
        return {name: facts["size"] for name, facts in self._marker(ref).items()}

    def read(self, ref: CheckpointRef, name: str) -> bytes:
        """One file of a checkpoint, verified against the marker; KeyError if there is none, OrchError if damaged."""
        facts = self._marker(ref)[name]
        key = f"{ref.prefix}/{name}"
        try:
            data = self.storage.get(key)
        except FileNotFoundError:
            raise self._damaged(ref, name) from None
        if _facts(data) != facts:
            raise self._damaged(ref, name)
        return data

    def prune(self, keep: int) -> None:
        """Delete this generation's complete checkpoints but the last `keep`, marker first; none if overtaken."""
        if current_generation(self.storage, self.fingerprint) > self.generation:
            return
        mine = [ref for ref in self.complete() if ref.generation == self.generation]
        for ref in mine[: max(0, len(mine) - keep)]:
            self._delete(ref)

    def clear(self) -> None:
        """Delete every checkpoint of every generation; for the lease's holder, once the artifact is published."""
        for ref in self._places():
            self._delete(ref)

    @property
    def _root(self) -> str:
        return f"work/{self.fingerprint}"

    def _places(self) -> list[CheckpointRef]:
        """Where checkpoints are or were begun, complete or not."""
        return [
            CheckpointRef(int(name[5:]), int(generation), f"{self._root}/{generation}/{name}")
            for generation in self.storage.children(self._root)
            if generation.isdigit()
            for name in self.storage.children(f"{self._root}/{generation}")
            if name.startswith("ckpt-") and name[5:].isdigit()
        ]

    def _is_whole(self, ref: CheckpointRef) -> bool:
        """Whether marker and files can be what was written, by their sizes."""
        try:
            sizes = self.files(ref)
        except OrchError as error:
            if isinstance(error, StoreAway):
                raise
            return False
        there = {info.key.removeprefix(f"{ref.prefix}/"): info.size for info in self.storage.list(ref.prefix)}
        return all(there.get(name) == size for name, size in sizes.items())

    def _settle(self, ref: CheckpointRef, names: Iterable[str]) -> None:
        """Put these files on the disk for good, if they are on one."""
        place = self.storage.local(ref.prefix)
        if place is not None:
            for path in (*(place / name for name in names), place, place.parent):
                sync(path)

    def _delete(self, ref: CheckpointRef) -> None:
        self.storage.delete(f"{ref.prefix}/{MARKER}")
        for info in self.storage.list(ref.prefix):
            self.storage.delete(info.key)

    def _marker(self, ref: CheckpointRef) -> dict[str, Any]:
        try:
            return json.loads(self.storage.get(f"{ref.prefix}/{MARKER}"))["files"]
        except (FileNotFoundError, ValueError, KeyError):
            raise self._damaged(ref, MARKER) from None

    def _damaged(self, ref: CheckpointRef, name: str) -> OrchError:
        return OrchError(
            f"{self.storage.where(f'{ref.prefix}/{name}')}: this file of the checkpoint is missing or damaged",
            f"delete {self.storage.where(ref.prefix)} and submit again: work goes on from the checkpoint before it",
        )


def _facts(data: bytes | Path) -> dict[str, Any]:
    if isinstance(data, bytes):
        return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    with open(data, "rb") as file:
        return {"size": data.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
