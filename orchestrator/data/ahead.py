"""Blocks read ahead of their use: encoded images and captions of the windows that a loader is in, and of the next.

A window (blocks.py) is read when the position comes within a quarter of a block of it, its blocks side by side, each
in as few requests as are worth it (ranges.py). It is forgotten when the batches that showed it have been taken. So
what is held is about `MIXED` blocks for a process that makes whole batches, and its share of them for one of several.
Of a window some of whose samples are not to be shown here (another rank shows them; they were shown before a resume)
only the others are read.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from orchestrator.data.blocks import Blocked, Window
from orchestrator.data.dataset import Dataset
from orchestrator.data.dataset import Sample as Stored

READERS = 4
Key = tuple[int, int, int]
"""A window: its stream, and the positions in it at which it begins and has ended."""


class Ahead:
    """The samples of a block order, by position. Thread-safe.

    Args:
        dataset: what the order is over.
        stored: positions in it, in the order in which samples are stored (read.py).
        order: of these.
        places: of each global batch that are asked for.
        readers: blocks read at the same time.
    """

    def __init__(
        self, dataset: Dataset, stored: np.ndarray, order: Blocked, places: range, readers: int = READERS
    ) -> None:
        self._dataset, self._stored, self._order, self._places = dataset, stored, order, places
        self._streams = range(places.start // order.step, -(-places.stop // order.step))
        self._early = order.size // max(order.streams, len(order.starts) - 1) // 4
        self._held: dict[Key, list[Future[dict[int, Stored]]]] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="blocks")

    def reach(self, start: int) -> None:
        """Begin to read what the global batch at this position shows, and what comes soon after it."""
        at = start // self._order.batch * self._order.step
        for stream in self._streams:
            position = at
            while position < at + max(self._order.step, self._early):
                window = self._order.window(stream, position)
                self._open(window, position)
                position = window.last

    def samples(self, start: int, count: int) -> dict[int, Stored]:
        """Samples by their position in the selection, of the positions from `start` on; read now if need be."""
        found = {}
        for window, rows in self._order.spans(start, count):
            held = [part.result() for part in self._held.get(_key(window), ())]
            missing = []
            for row in self._stored[rows].tolist():
                sample = next((part[row] for part in held if row in part), None)
                if sample is None:  # in place of a bad sample, one that is shown elsewhere
                    missing.append(row)
                else:
                    found[row] = sample
            found.update(self._read(np.asarray(missing, np.int64)) if missing else {})
        return found

    def passed(self, start: int) -> None:
        """All batches before this position have been made: forget what only they showed."""
        at = start // self._order.batch * self._order.step
        with self._lock:
            for key in [key for key in self._held if key[2] <= at]:
                del self._held[key]

    def close(self) -> None:
        """End its threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _open(self, window: Window, position: int) -> None:
        """Have what is to be shown of a window read, from this position in the stream on, unless it has been."""
        with self._lock:
            if _key(window) in self._held:
                return
            at = np.arange(position, window.last)
            place = window.stream * self._order.step + at % self._order.step
            here = (place >= self._places.start) & (place < self._places.stop)
            rows = np.sort(window.rows[position - window.first :][here])
            edges = np.flatnonzero(np.diff(self._order.block_of(rows))) + 1
            parts = [part for part in np.split(self._stored[rows], edges) if len(part)]
            self._held[_key(window)] = [self._pool.submit(self._read, part) for part in parts]

    def _read(self, rows: np.ndarray) -> dict[int, Stored]:
        part = self._dataset.take(rows)
        return dict(zip(rows.tolist(), part.read(range(len(part)))))


def _key(window: Window) -> Key:
    return window.stream, window.first, window.last
