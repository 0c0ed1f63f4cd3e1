"""What is finished of a stage that works block by block: a part a block, kept under the stage's work until the end.

    work/<fingerprint>/parts/<pass>/<block>

A part is a function of the stage's fingerprint, the pass and the block, so whoever made it, in whatever attempt and
generation, made the same: parts need no lease, and a killed stage loses the blocks that were in flight, no more. Each
begins with the SHA-256 of what follows; one that a power cut has torn counts as not there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from orchestrator.errors import OrchError
from orchestrator.io.storage import Storage

DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Parts:
    """One stage's parts. Picklable; opened anew in each worker process."""

    storage: Storage
    fingerprint: str

    def put(self, name: str, block: int, data: bytes) -> None:
        """Keep what pass `name` made of a block."""
        self.storage.put(self._key(name, block), hashlib.sha256(data).digest() + data)

    def find(self, name: str, block: int) -> bytes | None:
        """What pass `name` made of a block; None if that is not there or torn (then it goes)."""
        try:
            found = self.storage.get(self._key(name, block))
        except FileNotFoundError:
            return None
        if hashlib.sha256(found[DIGEST:]).digest() != found[:DIGEST]:
            self.storage.delete(self._key(name, block))
            return None
        return found[DIGEST:]

    def get(self, name: str, block: int) -> bytes:
        """The same where it must be there; OrchError if it is not."""
        found = self.find(name, block)
        if found is None:
            raise OrchError(
                f"{self.storage.where(self._key(name, block))}: this part of the stage's work is missing or damaged",
                "submit again: it is made anew. Where nodes share no file system, use a store that all of them see",
            )
        return found

    def done(self, name: str) -> Collection[int]:
        """Blocks of which pass `name` has left something; one listing."""
        prefix = f"{self._root}/{name}"
        return {int(info.key.rpartition("/")[2]) for info in self.storage.list(prefix) if info.size >= DIGEST}

    def clear(self) -> None:
        """Delete all parts; for the lease's holder, once the artifact is published."""
        self.storage.delete_many([info.key for info in self.storage.list(self._root)])

    @property
    def _root(self) -> str:
        return f"work/{self.fingerprint}/parts"

    def _key(self, name: str, block: int) -> str:
        return f"{self._root}/{name}/{block:08d}"
