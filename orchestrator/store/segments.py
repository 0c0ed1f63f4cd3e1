"""Streams in a store that cannot append: numbered segments, each written once.

    <root>/work/<fingerprint>/<generation>/<stream>/<n>                       n = 0, 1, 2, ... without gaps
    <root>/work/<fingerprint>/packed/<stream>/<generation>/<first>-<next>     segments first <= n < next, in one object

A writer buffers and closes a segment every second at first, every ten seconds in long runs. Several writers may share
a stream: a segment is created if absent, so each takes the next free number. A reader asks for the next number until
there is none. Once it has seen a newer generation it does not go back: what an overtaken process still writes is not
read.

A day of work is some ten thousand objects, so `compact` packs them when a stage is final: the pack first, then the
segments in it are deleted. A segment's number stays what it was, so positions stay valid; a reader that misses one
looks for a pack before it takes that for the end.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from orchestrator.io.storage import Storage

log = logging.getLogger(__name__)

MAX_BUFFER_BYTES = 32 << 20
"""Held while the store cannot be written; what comes beyond is dropped, and the number of dropped writes is logged."""

READ_AHEAD = 16
"""Segments asked for at once where a reader has to catch up over a network."""

WORTH_PACKING = 4
"""Fewer segments are left as they are."""

PACK_BYTES = 32 << 20
"""A pack is closed when it holds so much: what `compact` and a reader of packs need in memory."""


@dataclass(frozen=True)
class Segment:
    """One segment as it was written: its generation, its number there, its bytes."""

    generation: int
    number: int
    data: bytes


class SegmentWriter:
    """Collects bytes and writes them as segments from a thread of its own. Thread-safe; its methods never raise.

    Args:
        storage, fingerprint, generation, stream: where.
        suffix: of the segments' names, for instance ".jsonl".
        interval_s: seconds between segments at the start; grows to ten times that over ten minutes.
        segment_bytes: a segment is closed early when so much is waiting.
    """

    def __init__(
        self,
        storage: Storage,
        fingerprint: str,
        generation: int,
        stream: str,
        suffix: str = "",
        interval_s: float = 1.0,
        segment_bytes: int = 1 << 20,
    ) -> None:
        self._storage = storage
        self._prefix = f"work/{fingerprint}/{generation}/{stream}"
        self._packs = f"work/{fingerprint}/packed/{stream}/{generation}"
        self._suffix = suffix
        self._interval_s = interval_s
        self._segment_bytes = segment_bytes
        self._begun = time.monotonic()
        self._next: int | None = None
        self._buffer: list[bytes] = []
        self._waiting_bytes = 0
        self._dropped = 0
        self._buffer_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"{stream}-writer", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        """Take some bytes; whole lines, since segments are cut between writes."""
        with self._buffer_lock:
            if self._waiting_bytes + len(data) > MAX_BUFFER_BYTES:
                self._dropped += 1
                return
            self._buffer.append(data)
            self._waiting_bytes += len(data)
            full = self._waiting_bytes >= self._segment_bytes
        if full or self._closed:
            self._wake.set()

    def flush(self) -> bool:
        """Write now what is waiting, on a local disk for good; False if the store did not take it (it is kept and
        tried again).
        """
        with self._write_lock:
            with self._buffer_lock:
                data, count = b"".join(self._buffer), len(self._buffer)
            if not count:
                return True
            try:
                self._create(data)
            except Exception as error:  # a sink must never stop the work that it watches
                log.warning("%s: not written yet: %s", self._storage.where(self._prefix), error)
                return False
            with self._buffer_lock:
                del self._buffer[:count]
                self._waiting_bytes -= len(data)
                dropped, self._dropped = self._dropped, 0
            if dropped:
                log.warning("%s: %d writes were dropped", self._storage.where(self._prefix), dropped)
            return True

    def close(self) -> None:
        """Write what is waiting and stop the thread; may be called twice."""
        self._closed = True
        self._wake.set()
        self._thread.join()
        self.flush()

    def _create(self, data: bytes) -> None:
        if self._next is None:
            ends = [n + 1 for info in self._storage.list(self._prefix) if (n := _number(info.key)) is not None]
            self._next = max([0, *ends, *(pack.next for pack in _packs(self._storage, self._packs))])
        while not self._storage.create(f"{self._prefix}/{self._next}{self._suffix}", data, durable=True):
            self._next += 1
        self._next += 1

    def _run(self) -> None:
        while not self._closed:
            age_s = time.monotonic() - self._begun
            self._wake.wait(self._interval_s * min(10.0, max(1.0, age_s / 60)))
            self._wake.clear()
            if not self._closed:
                self.flush()


class SegmentReader:
    """Reads a stream from where it stopped the last time, over all generations in order, each segment once.

    `position` is (generation, next segment): keep it to go on in another process, also after a compaction.
    """

    def __init__(
        self, storage: Storage, fingerprint: str, stream: str, suffix: str = "", position: tuple[int, int] = (0, 0)
    ) -> None:
        self._storage = storage
        self._root = f"work/{fingerprint}"
        self._stream = stream
        self._suffix = suffix
        self._end: tuple[int, int] | None = None
        self.position = position

    def poll(self) -> list[Segment]:
        """The segments that came since the last call; [] if none.

        Where nothing has come it costs one listing and one request, of the next segment.
        """
        found: list[Segment] = []
        generation, number = self.position
        places = self._storage.children(self._root)
        generations = _generations(self._storage, self._root, self._stream, places, since=generation)
        # Segments may be packed between two requests of ours. Only where we stood at the end the last time, nothing
        # is packed and no generation follows can a missing segment mean nothing but the end.
        unpacked = self._end == self.position and "packed" not in places and len(generations) < 2
        for g in generations:
            segments = self._read(g, number if g == generation else 0, unpacked)
            if segments:
                generation, number = g, segments[-1].number + 1
                found += segments
        self.position = self._end = (generation, number)
        return found

    def _read(self, generation: int, first: int, unpacked: bool) -> list[Segment]:
        """From `first` to the end of a generation, out of single segments and packs as they are there."""
        found = self._singles(generation, first)
        if unpacked and not found:
            return found
        while pack := self._pack(generation, first + len(found)):
            found += pack
            found += self._singles(generation, first + len(found))
        return found

    def _singles(self, generation: int, first: int) -> list[Segment]:
        data = self._get(generation, first)
        if data is None:
            return []
        found = [data]
        if self._storage.local(self._root) is not None:
            while (data := self._get(generation, first + len(found))) is not None:
                found.append(data)
            return found
        with ThreadPoolExecutor(READ_AHEAD) as pool:
            ahead = 1  # a reader that keeps up asks for one too many, not for fifteen
            while True:
                ahead, start = min(2 * ahead, READ_AHEAD), first + len(found)
                asked = list(pool.map(lambda n: self._get(generation, n), range(start, start + ahead)))
                end = asked.index(None) if None in asked else ahead
                found += [segment for segment in asked[:end] if segment is not None]
                if end < ahead:
                    return found

    def _get(self, generation: int, number: int) -> Segment | None:
        key = f"{self._root}/{generation}/{self._stream}/{number}{self._suffix}"
        try:
            return Segment(generation, number, self._storage.get(key))
        except FileNotFoundError:
            return None

    def _pack(self, generation: int, number: int) -> list[Segment]:
        """Segments from `number` on out of the pack that has it; [] if none has."""
        packs = _packs(self._storage, f"{self._root}/packed/{self._stream}/{generation}")
        holding = [pack for pack in packs if pack.first <= number < pack.next]
        if not holding:
            return []
        parts = _unpacked(self._storage.get(holding[0].key))
        return [Segment(generation, n, parts[n - holding[0].first]) for n in range(number, holding[0].next)]


def near_end(storage: Storage, fingerprint: str, stream: str, back: int) -> tuple[int, int]:
    """The position `back` segments before the end of the last generation that has any: to read only what came last."""
    root = f"work/{fingerprint}"
    for generation in reversed(_generations(storage, root, stream, storage.children(root))):
        numbers = [_number(info.key) for info in storage.list(f"{root}/{generation}/{stream}")]
        packs = _packs(storage, f"{root}/packed/{stream}/{generation}")
        end = max([0, *(n + 1 for n in numbers if n is not None), *(pack.next for pack in packs)])
        if end:
            return generation, max(0, end - back)
    return 0, 0


def compact(storage: Storage, fingerprint: str, stream: str, suffix: str = "") -> int:
    """Pack a stream's segments and delete those that are packed; how many were deleted.

    For a stage that is final: nobody may be writing to the stream. It may be killed anywhere and called again, also by
    two processes at once, and readers may be in the middle: a segment is deleted only when a pack that holds it is
    there, packs are never deleted, and equal numbers are equal bytes.
    """
    root = f"work/{fingerprint}"
    deleted = 0
    for generation in _generations(storage, root, stream, storage.children(root)):
        here, there = f"{root}/{generation}/{stream}", f"{root}/packed/{stream}/{generation}"
        singles = {n: info.size for info in storage.list(here) if (n := _number(info.key)) is not None}
        held = _held(storage, there)
        loose = sorted(set(singles) - held)
        with ThreadPoolExecutor(READ_AHEAD) as pool:
            for first, end in _runs_of(loose, singles) if len(loose) >= WORTH_PACKING else ():
                keys = [f"{here}/{n}{suffix}" for n in range(first, end)]
                try:
                    _write_pack(storage, f"{there}/{first}-{end}{suffix}", list(pool.map(storage.get, keys)))
                except FileNotFoundError:
                    break  # another process packs them, and deleted this one already
                held |= set(range(first, end))
            packed = sorted(set(singles) & held)
            list(pool.map(storage.delete, [f"{here}/{n}{suffix}" for n in packed]))
        deleted += len(packed)
    return deleted


def _generations(storage: Storage, root: str, stream: str, places: list[str], since: int = 0) -> list[int]:
    """Generations that may hold segments: places that are there, and those that were packed and so are empty."""
    packed = storage.children(f"{root}/packed/{stream}") if "packed" in places else []
    return sorted(g for name in {*places, *packed} if name.isdigit() and (g := int(name)) >= since)


@dataclass(frozen=True)
class _Pack:
    """A pack by its name: segments first <= n < next."""

    key: str
    first: int
    next: int


def _packs(storage: Storage, prefix: str) -> list[_Pack]:
    found = []
    for info in storage.list(prefix):
        first, dash, end = info.key.rpartition("/")[2].partition(".")[0].partition("-")
        if dash and first.isdigit() and end.isdigit():
            found.append(_Pack(info.key, int(first), int(end)))
    return found


def _held(storage: Storage, prefix: str) -> set[int]:
    """Numbers of the segments that packs hold."""
    return {n for pack in _packs(storage, prefix) for n in range(pack.first, pack.next)}


def _runs_of(numbers: list[int], sizes: dict[int, int]) -> list[tuple[int, int]]:
    """Ranges [first, end) of consecutive numbers, of at most `PACK_BYTES` each (a larger segment is alone)."""
    runs: list[tuple[int, int]] = []
    held_bytes = 0
    for n in numbers:
        if runs and runs[-1][1] == n and held_bytes + sizes[n] <= PACK_BYTES:
            runs[-1] = (runs[-1][0], n + 1)
            held_bytes += sizes[n]
        else:
            runs.append((n, n + 1))
            held_bytes = sizes[n]
    return runs


def _write_pack(storage: Storage, key: str, parts: list[bytes]) -> None:
    """A line with the parts' sizes, as JSON, then the parts; on the disk for good before they are deleted."""
    data = json.dumps([len(part) for part in parts]).encode() + b"\n" + b"".join(parts)
    storage.create(key, data, durable=True)


def _unpacked(data: bytes) -> list[bytes]:
    start = data.index(b"\n") + 1
    parts = []
    for size in json.loads(data[:start]):
        parts.append(data[start : start + size])
        start += size
    return parts


def _number(key: str) -> int | None:
    name = key.rpartition("/")[2].partition(".")[0]
    return int(name) if name.isdigit() else None
