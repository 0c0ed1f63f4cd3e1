"""Where a running stage keeps its checkpoints, and how it finds the last complete one.

    <root>/work/<fingerprint>/<generation>/ckpt-<samples>/...    written by that generation's holder only, marker last

Resume takes the highest complete checkpoint of any generation; an incomplete one does not exist. What is inside is the training
loop's business (training/checkpoint.py); here are only names, atomicity and retention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.io.storage import Storage


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
        """Write the files, then the marker (sizes and SHA-256 of each). Readers see all of it or nothing."""
        raise NotImplementedError

    def latest(self) -> CheckpointRef | None:
        """The complete checkpoint with the most samples, of any generation; the newer generation wins a tie."""
        raise NotImplementedError

    def read(self, ref: CheckpointRef, name: str) -> bytes:
        """One file of a checkpoint, verified against the marker."""
        raise NotImplementedError

    def prune(self, keep: int) -> None:
        """Delete this generation's complete checkpoints but the last `keep` (marker first)."""
        raise NotImplementedError
