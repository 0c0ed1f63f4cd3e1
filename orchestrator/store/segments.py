"""Streams in a store that cannot append: numbered segments, each written once.

    <root>/work/<fingerprint>/<generation>/<stream>/<n>       n = 0, 1, 2, ... without gaps

A writer buffers and closes a segment every second at first, every ten seconds in long runs (a day is some ten
thousand objects). Several writers may share a stream: a segment is created if absent, so each takes the next free
number. A reader asks for the next number until there is none. Once it has seen a newer generation it does not go
back: what an overtaken process still writes is not read.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from orchestrator.io.storage import Storage

log = logging.getLogger(__name__)

MAX_BUFFER_BYTES = 32 << 20
"""Held while the store cannot be written; what comes beyond is dropped, and the number of dropped writes is logged."""

READ_AHEAD = 16
"""Segments asked for at once where a reader has to catch up over a network."""


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
        """Write now what is waiting; False if the store did not take it (it is kept and tried again)."""
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
            numbers = [_number(info.key) for info in self._storage.list(self._prefix)]
            self._next = max((n for n in numbers if n is not None), default=-1) + 1
        while not self._storage.create(f"{self._prefix}/{self._next}{self._suffix}", data):
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
    """Reads a stream from where it stopped the last time, over all generations in order.

    `position` is (generation, next segment): keep it to go on in another process.
    """

    def __init__(
        self, storage: Storage, fingerprint: str, stream: str, suffix: str = "", position: tuple[int, int] = (0, 0)
    ) -> None:
        self._storage = storage
        self._root = f"work/{fingerprint}"
        self._stream = stream
        self._suffix = suffix
        self.position = position

    def poll(self) -> list[bytes]:
        """The segments that came since the last call; [] if none."""
        found: list[bytes] = []
        generation, number = self.position
        later = sorted(int(g) for g in self._storage.children(self._root) if g.isdigit() and int(g) >= generation)
        for g in later:
            segments = self._read(g, number if g == generation else 0)
            if segments:
                number = len(segments) + (number if g == generation else 0)
                generation = g
                found += segments
        self.position = (generation, number)
        return found

    def _read(self, generation: int, first: int) -> list[bytes]:
        get = self._getter(generation)
        data = get(first)
        if data is None:
            return []
        found = [data]
        if self._storage.local(self._root) is not None:
            while (data := get(first + len(found))) is not None:
                found.append(data)
            return found
        with ThreadPoolExecutor(READ_AHEAD) as pool:
            while True:
                start = first + len(found)
                ahead = list(pool.map(get, range(start, start + READ_AHEAD)))
                end = ahead.index(None) if None in ahead else READ_AHEAD
                found += [segment for segment in ahead[:end] if segment is not None]
                if end < READ_AHEAD:
                    return found

    def _getter(self, generation: int) -> Callable[[int], bytes | None]:
        def get(number: int) -> bytes | None:
            try:
                return self._storage.get(f"{self._root}/{generation}/{self._stream}/{number}{self._suffix}")
            except FileNotFoundError:
                return None

        return get


def _number(key: str) -> int | None:
    name = key.rpartition("/")[2].partition(".")[0]
    return int(name) if name.isdigit() else None
