"""Block shuffling: an order of samples that reads its shards in large pieces, as a pure function of the position.

Cut the selected samples, in the order they are stored, into blocks of about `BLOCK_BYTES` of images. An epoch's blocks
are laid in a row, in an order of their own (a keyed permutation, sampler.py). Streams share the row: stream s of S
takes its s-th S-th, and gives the s-th S-th of every batch. Inside a stream, windows of a few neighbouring blocks are
shuffled by sample. So a batch mixes `MIXED` blocks of anywhere in the data, and a stream shows all of its part of an
epoch before it begins the next. S follows from the batch, never from the number of ranks: a rank reads the blocks of
its own streams.

Unlike the exact order this one depends on how the samples lie in the shards, and samples that lie together are seen
within one window. Shards sorted by topic still give mixed batches; not as thoroughly mixed ones.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from orchestrator.data.sampler import permute

BLOCK_BYTES = 16 << 20
"""Image bytes of a block: one request of an object store at its full rate."""
MIXED = 32
"""Blocks that a batch is drawn from, and the largest number of streams. A process that makes whole batches holds about
as many blocks in memory."""
KEPT = 4 * MIXED
"""Windows whose order is remembered: those at hand and the next of each stream."""


@dataclass(frozen=True)
class Window:
    """A few blocks of one stream that are shuffled together.

    Attributes:
        stream, epoch: which stream's, and which time round.
        first, last: positions in the stream at which it begins and has ended.
        rows: places in the data [last - first], in the order shown.
    """

    stream: int
    epoch: int
    first: int
    last: int
    rows: np.ndarray


class Blocked:
    """Endless epochs over samples in stored order, like sampler.py's `Shuffled` but block by block.

    Args:
        sizes: image bytes of each sample [n], in stored order.
        batch: samples of a global batch.
        seed: of the stage.
    """

    def __init__(self, sizes: np.ndarray, batch: int, seed: int) -> None:
        self.size, self.seed, self.batch = len(sizes), seed, batch
        self.streams = min(batch & -batch, MIXED)  # the largest power of two that divides the batch
        self.starts = cut(sizes)
        self._edges = np.arange(self.streams + 1) * self.size // self.streams
        self._window = functools.lru_cache(maxsize=KEPT)(self._made)
        self._laid = functools.lru_cache(maxsize=3)(self._lay)

    @property
    def step(self) -> int:
        """Samples of a batch that each stream gives."""
        return self.batch // self.streams

    def rows(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Epochs [count] and places in the data [count] of the positions from `start` on."""
        found = [(np.full(len(rows), window.epoch), rows) for window, rows in self.spans(start, count)]
        epochs, rows = zip(*found)
        return np.concatenate(epochs), np.concatenate(rows)

    def spans(self, start: int, count: int) -> Iterator[tuple[Window, np.ndarray]]:
        """The same positions as stretches of windows: the window, and places in the data."""
        end = start + count
        while start < end:
            batch, place = divmod(start, self.batch)
            stream, ahead = divmod(place, self.step)
            at = batch * self.step + ahead
            window = self.window(stream, at)
            taken = min(end - start, self.step - ahead, window.last - at)
            yield window, window.rows[at - window.first :][:taken]
            start += taken

    def window(self, stream: int, at: int) -> Window:
        """The window of a stream that holds its position `at`."""
        first, last = self._edges[stream], self._edges[stream + 1]
        epoch, place = divmod(at, int(last - first))
        _, ends = self._laid(epoch)
        number = int(np.searchsorted(ends, first + place, side="right")) // self._together
        return self._window(stream, epoch, number)

    def block_of(self, rows: np.ndarray) -> np.ndarray:
        """The block in which each of these places of the data lies."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    @property
    def _together(self) -> int:
        """Blocks of a window."""
        return MIXED // self.streams

    def _made(self, stream: int, epoch: int, number: int) -> Window:
        """The part of an epoch's `number`-th window that lies in a stream."""
        order, ends = self._laid(epoch)
        blocks = order[number * self._together : (number + 1) * self._together]
        opens = int(ends[number * self._together] - self._lengths[blocks[0]])
        first, last = int(self._edges[stream]), int(self._edges[stream + 1])
        within = slice(max(first - opens, 0), last - opens)
        rows = np.concatenate([np.arange(self.starts[block], self.starts[block + 1]) for block in blocks])[within]
        mixed = permute(np.arange(len(rows)), len(rows), self.seed, epoch, f"window {opens + within.start}")
        begins = epoch * (last - first) + max(opens - first, 0)
        return Window(stream, epoch, begins, begins + len(rows), rows[mixed])

    def _lay(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """An epoch's row of blocks: their numbers, and where in the row each ends."""
        order = permute(np.arange(len(self._lengths)), len(self._lengths), self.seed, epoch, "blocks")
        return order, np.cumsum(self._lengths[order])

    @functools.cached_property
    def _lengths(self) -> np.ndarray:
        return np.diff(self.starts)


def cut(sizes: np.ndarray) -> np.ndarray:
    """First sample of each block and the number of samples [blocks + 1], for image bytes a sample: blocks as equal
    as they come, of about `BLOCK_BYTES`.
    """
    reached = np.cumsum(sizes)
    blocks = max(1, round(int(reached[-1]) / BLOCK_BYTES))
    middles = reached - sizes / 2
    numbers = np.minimum(middles * blocks / reached[-1], blocks - 1).astype(np.int64)
    return np.append(np.flatnonzero(np.diff(numbers, prepend=-1)), len(sizes))
