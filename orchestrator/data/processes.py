"""Child processes that make batches, where one process's threads wait for Python's lock.

Each child makes the same places of every batch, as if it were one of several ranks: whatever the number of children,
the batch is the same, and in block order each reads its own blocks only. Pixels come through shared memory, which has
no name and so leaves nothing behind; everything else through a pipe. A child whose pipe breaks ends at once: it never
outlives its parent, however that one ended. Children are forked, but from a server that has done nothing yet except
to import (obstore and compute threads do not survive a fork).
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

import numpy as np
import torch

from orchestrator.data.children import ForkServer
from orchestrator.data.dataset import Dataset
from orchestrator.data.making import Made, Maker, Wanted
from orchestrator.errors import DataError

END_S = 5.0
"""How long a child may take to notice that it is no longer needed."""


@dataclass(frozen=True)
class _Job:
    """What a child is told: the arguments of its `Maker`, and where the pixels of a slot are put."""

    reopen: Callable[[], Dataset]
    wanted: Wanted
    places: range
    cache_bytes: int
    pixels: Any
    shape: tuple[int, ...]


class Processes:
    """Makes the same places of any global batches, like `Maker`, a part of them in each of several processes.

    Args:
        reopen: gives a child the data set.
        wanted, places: as `Maker` has them.
        processes: how many children.
        slots: batches that may be under way.
        cache_bytes: memory for decoded images, of all children together.
    """

    def __init__(
        self,
        reopen: Callable[[], Dataset],
        wanted: Wanted,
        places: range,
        *,
        processes: int,
        slots: int,
        cache_bytes: int,
    ) -> None:
        context = ForkServer()
        context.set_forkserver_preload([__name__])
        edges = [places.start + len(places) * n // processes for n in range(processes + 1)]
        parts = [range(a, b) for a, b in pairwise(edges) if a < b]
        side = wanted.preprocess.image_size
        self._lock = threading.Lock()
        self._free = list(range(slots))
        self._batches: dict[int, _Batch] = {}
        self._number = 0
        self._broken: DataError | None = None
        self._children: list[_Child] = []
        for number, part in enumerate(parts):
            shape = (slots, wanted.views.images, len(part), 3, side, side)
            pixels = context.RawArray("B", int(np.prod(shape)))
            here, there = context.Pipe()
            job = _Job(reopen, wanted, part, cache_bytes // len(parts), pixels, shape)
            process = context.Process(target=_work, args=(there, job), name="orch-loader", daemon=True)
            process.start()
            there.close()
            within = slice(part.start - places.start, part.stop - places.start)
            view = np.frombuffer(pixels, np.uint8).reshape(shape)
            self._children.append(_Child(number, process, here, within, view))
        self._threads = [threading.Thread(target=self._listen, args=(c,), daemon=True) for c in self._children]
        for thread in self._threads:
            thread.start()
        atexit.register(self.close)  # else Python's own end would wait for them

    def begin(self, start: int, images: Sequence[np.ndarray]) -> Future[Made]:
        """Have the places of the global batch at a position made, the pixels of each view put into [n, 3, H, W]."""
        with self._lock:
            self._number += 1
            batch = _Batch(self._free.pop(), images, [None] * len(self._children))
            self._batches[self._number] = batch
            if self._broken is not None:
                batch.fail(self._broken)
        for child in self._children:
            self._tell(child, (self._number, start, batch.slot))
        return batch.done

    def passed(self, start: int) -> None:
        """All batches before this position have been taken."""
        for child in self._children:
            self._tell(child, (0, start, 0))

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes read of the shards so far, and requests made, by all children."""
        read, requests = zip(*(child.traffic for child in self._children))
        return sum(read), sum(requests)

    def close(self) -> None:
        """End the children. Twice is once."""
        atexit.unregister(self.close)
        for child in self._children:
            child.ending = True
            self._tell(child, None)
        for child in self._children:
            child.process.join(END_S)
            if child.process.exitcode is None:
                child.process.kill()
                child.process.join()
        for thread in self._threads:
            thread.join()
        for child in self._children:
            child.connection.close()

    def _tell(self, child: _Child, message: _Message | None) -> None:
        with suppress(OSError):  # it has ended: whoever listens to it says so
            child.connection.send(message)

    def _listen(self, child: _Child) -> None:
        """Take what a child makes, until it ends."""
        while True:
            try:
                name, made, child.traffic = child.connection.recv()
            except (EOFError, OSError):
                break
            self._take(child, name, made)
        if child.ending:
            return
        child.process.join()
        error = DataError(
            f"a loader process ended by itself (exit code {child.process.exitcode})",
            "it may have run out of memory: lower `loader_processes`; submitting again goes on",
        )
        with self._lock:
            self._broken = error
            for batch in self._batches.values():
                batch.fail(error)

    def _take(self, child: _Child, name: int, made: Made | BaseException) -> None:
        """A child's part of a batch has come; with the last one the batch is whole."""
        batch = self._batches[name]
        if isinstance(made, BaseException):
            with self._lock:
                batch.fail(made)
            return
        for view, images in enumerate(batch.images):
            images[child.within] = child.pixels[batch.slot, view]
        with self._lock:
            batch.parts[child.number] = made
            parts = [part for part in batch.parts if part is not None]
            if len(parts) < len(batch.parts):
                return
            del self._batches[name]
            self._free.append(batch.slot)
        if not batch.done.done():
            batch.done.set_result(_joined(parts))


_Message = tuple[int, int, int]
"""To a child: a batch's number, position and slot for its pixels; number 0: all before the position is over."""
_Answer = tuple[int, Made | BaseException, tuple[int, int]]
"""From a child: the batch's number, what was made, and the child's traffic so far."""


@dataclass
class _Child:
    """A process, our end of its pipe, which of the parts it makes, where they lie among our places, its pixels."""

    number: int
    process: ForkServerProcess
    connection: Connection
    within: slice
    pixels: np.ndarray
    traffic: tuple[int, int] = (0, 0)
    ending: bool = False


@dataclass
class _Batch:
    """A batch under way: the slot of its pixels, where they are wanted, and the parts that have come."""

    slot: int
    images: Sequence[np.ndarray]
    parts: list[Made | None]
    done: Future[Made] = field(default_factory=Future)

    def fail(self, error: BaseException) -> None:
        """The first error is the batch's."""
        if not self.done.done():
            self.done.set_exception(error)


def _joined(parts: Sequence[Made]) -> Made:
    """The parts of a batch as one."""
    whole = Made(usable=all(part.usable for part in parts))
    for part in parts:
        whole.uids += part.uids
        whole.numbers += part.numbers
        whole.bad += part.bad
        whole.survival.merge(part.survival.as_json())
    if whole.usable:
        whole.tokens = tuple(map(_padded, zip(*(part.tokens for part in parts))))
    return whole


def _padded(tokens: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of tokens of several lengths L as one array, zeros at the ends of the shorter ones."""
    length = max(rows.shape[1] for rows in tokens)
    return np.concatenate([np.pad(rows, ((0, 0), (0, length - rows.shape[1]))) for rows in tokens])


def _work(connection: Connection, job: _Job) -> None:
    """What a child does until its pipe breaks or it is told to end."""
    for sign in (signal.SIGINT, signal.SIGTERM):  # meant for the parent, which ends us when it is done
        signal.signal(sign, signal.SIG_IGN)
    torch.set_num_threads(1)
    pixels = np.frombuffer(job.pixels, np.uint8).reshape(job.shape)
    lock = threading.Lock()

    def answer(answer: _Answer) -> None:
        with lock, suppress(OSError):
            connection.send(answer)

    def made(number: int, future: Future[Made]) -> None:
        error = future.exception()
        answer((number, future.result() if error is None else error, maker.traffic))

    try:
        maker = Maker(job.reopen(), job.wanted, job.places, threads=1, cache_bytes=job.cache_bytes)
    except BaseException as error:  # told as the first batch's
        with suppress(EOFError, OSError, TypeError):
            answer((connection.recv()[0], error, (0, 0)))
        return
    with suppress(EOFError, OSError):
        while (message := connection.recv()) is not None:
            number, start, slot = message
            if number:
                maker.begin(start, list(pixels[slot])).add_done_callback(partial(made, number))
            else:
                maker.passed(start)
    os._exit(0)  # what is still being made is for nobody
