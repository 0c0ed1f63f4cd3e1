"""Bytes by key: local disk, S3 and memory behind one small interface, a thin skin over obstore.

Keys are relative, `/`-separated, without empty segments. Every protocol above needs nothing but *create if absent*, which all three
offer. Retries of throttling and time-outs happen here and nowhere else. Listings are sorted on the client (S3 servers differ).
obstore is not fork-safe: child processes use spawn or forkserver. Credentials come from the environment, profile or role.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Info:
    """A stored object: key, size in bytes, last modification in Unix seconds by the server's clock, entity tag."""

    key: str
    size: int
    modified: float
    etag: str | None


class Storage:
    """One root. Picklable by its URL; opened anew in each process."""

    url: str

    @classmethod
    def open(cls, url: str) -> Storage:
        """Open a local path, `s3://bucket/prefix` or `memory://name` (the same name is the same memory in a process)."""
        raise NotImplementedError

    def get(self, key: str) -> bytes:
        """The object's bytes; FileNotFoundError if absent."""
        raise NotImplementedError

    def get_ranges(self, key: str, starts: Sequence[int], ends: Sequence[int], coalesce: int = 1 << 20) -> list[bytes]:
        """Byte ranges [start, end) of one object, neighbours nearer than `coalesce` bytes read in one request."""
        raise NotImplementedError

    def put(self, key: str, data: bytes | Path) -> None:
        """Write or replace an object, atomically."""
        raise NotImplementedError

    def create(self, key: str, data: bytes) -> bool:
        """Write the object if absent; False if it was there."""
        raise NotImplementedError

    def head(self, key: str) -> Info | None:
        """Facts of one object, or None."""
        raise NotImplementedError

    def list(self, prefix: str) -> Iterator[Info]:
        """All objects under a prefix (a whole path segment), sorted by key."""
        raise NotImplementedError

    def delete(self, key: str) -> None:
        """Remove an object; absent is fine."""
        raise NotImplementedError

    def local(self, key: str) -> Path | None:
        """The path of an object on this machine's disk, for a local root; None otherwise."""
        raise NotImplementedError
