"""Reading members out of tar shards: byte ranges, neighbours together, from disk or from an object store.

Shards never change. One that did is no bad sample but other data, so whoever meets it stops, with its name.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from orchestrator.data import ranges
from orchestrator.errors import DataError
from orchestrator.io.storage import Storage

AT_ONCE = 16
"""Shards of an object store that one call reads from at a time; each may be asked for many ranges."""


class Traffic:
    """Bytes read and requests made, counted by any number of threads."""

    def __init__(self) -> None:
        self.bytes = self.requests = 0
        self._lock = threading.Lock()

    def add(self, num_bytes: int, requests: int) -> None:
        """Count what was just read."""
        with self._lock:
            self.bytes += num_bytes
            self.requests += requests


@dataclass(frozen=True)
class Shards:
    """The shards of a Dataset where they lie: `prefix` + name is the key of each in `storage`.

    `traffic` counts what `read` transfers: from an object store the merged ranges, from a disk the ranges themselves.
    """

    storage: Storage
    prefix: str
    names: Sequence[str]
    traffic: Traffic = field(default_factory=Traffic, compare=False)

    def check(self, sizes: Sequence[int]) -> None:
        """DataError naming the first shards that are gone or no longer of these sizes in bytes; one listing."""
        there = {info.key: info.size for info in self.storage.list(self.prefix.rstrip("/"))}
        found = [there.get(self.prefix + name) for name in self.names]
        bad = [(name, now, size) for name, now, size in zip(self.names, found, sizes) if now != size]
        if bad:
            named = "; ".join(
                f"{name} is gone" if now is None else f"{name} has {now:,} bytes instead of {size:,}"
                for name, now, size in bad[:3]
            )
            raise self.changed(f"{len(bad)} of {len(self.names)} shards are not those that were indexed ({named})")

    def read_each(self, wanted: Sequence[tuple[int, Sequence[int], Sequence[int]]]) -> list[list[bytes]]:
        """`read` of several shards: (shard, starts, ends) each; of an object store several at a time."""
        if len(wanted) < 2 or self.storage.local(self.prefix + self.names[wanted[0][0]]) is not None:
            return [self.read(*one) for one in wanted]
        with ThreadPoolExecutor(min(len(wanted), AT_ONCE), thread_name_prefix="shards") as pool:
            return list(pool.map(lambda one: self.read(*one), wanted))

    def read(self, shard: int, starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
        """Byte ranges [start, end) of one shard; DataError if it is gone, shorter or cannot be read."""
        name = self.names[shard]
        key = self.prefix + name
        try:
            path = self.storage.local(key)
            if path is None:
                return self._request(key, starts, ends)
            with path.open("rb") as file:
                found = [os.pread(file.fileno(), end - start, start) for start, end in zip(starts, ends)]
        except FileNotFoundError:
            raise self.changed(f"shard {name} is gone") from None
        except ValueError:
            raise self.changed(f"shard {name} is shorter than it was when it was indexed") from None
        except OSError as error:
            raise DataError(f"shard {name} cannot be read: {error}", "check the disk it is on") from error
        if any(len(data) < end - start for data, start, end in zip(found, starts, ends)):
            raise self.changed(f"shard {name} is shorter than it was when it was indexed")
        self.traffic.add(sum(map(len, found)), len(found))
        return found

    def _request(self, key: str, starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
        """The ranges cut out of fewer, larger ones (ranges.py)."""
        firsts, lasts = (edges.tolist() for edges in ranges.merge(starts, ends))
        read = self.storage.get_ranges(key, firsts, lasts, coalesce=0)
        self.traffic.add(sum(map(len, read)), len(read))
        views, found = [memoryview(data) for data in read], []
        for start, end in zip(starts, ends):
            span = bisect_right(firsts, start) - 1
            found.append(bytes(views[span][start - firsts[span] : end - firsts[span]]))
        return found

    def changed(self, what: str) -> DataError:
        """The error where shards are not what was indexed."""
        return DataError(
            f"{what}, at {self.storage.where(self.prefix.rstrip('/'))}",
            "put them back as they were and submit again, which goes on; or, if the change is wanted, submit again: "
            "the plan then has the data as they are now",
        )
