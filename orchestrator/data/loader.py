"""The training loader: a function from position to batch, computed ahead of the step that needs it.

The global order is a keyed permutation of the data, in uid order, for each epoch; global batch number k holds
positions [k*batch, (k+1)*batch), across the end of an epoch too, and rank r of W takes its r-th contiguous W-th.
Augmentation and caption choice draw from (seed, purpose, epoch, uid, view); with stored views (data/embeddings.py) a
sample shows these in turn instead, and the teacher's features come along. So what is seen depends neither on
ranks, workers, shards nor their order, and starting at any position costs nothing.

Threads make the parts of a batch, straight into its memory; the last to finish closes it. Finished batches ahead are
bounded in number and bytes. Decoded images are kept in memory up to `cache_bytes`: small drawings all fit.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from orchestrator.data.bad import BadSample, Tally
from orchestrator.data.batch import Batch, Views
from orchestrator.data.captions import CaptionPolicy
from orchestrator.data.dataset import Caption, Dataset
from orchestrator.data.preprocess import Preprocess, Tokenizer
from orchestrator.data.sampler import Shuffled
from orchestrator.data.transforms import Augment
from orchestrator.data.views import Picture, Shown, ViewMaker, num_bytes
from orchestrator.errors import DataError

if TYPE_CHECKING:
    from orchestrator.data.embeddings import StoredViews

Sample = tuple[Picture | bytes, tuple[Caption, ...]]
"""A picture, decoded or still encoded, and its captions."""
AHEAD = 3
"""Batches under way before the one that is asked for, at least, where `prefetch_bytes` allows."""
PART = range(64, 1025)
"""Samples that a thread reads together."""
BLOCK = 32
"""Samples of which the decoded pictures are held at once, besides those cached."""


class Loader:
    """Endless batches from a position on. Context manager: leaving it stops the threads.

    Args:
        dataset: what to read; it must not be smaller than one global batch.
        batch: global batch in samples; divisible by `size`.
        seed: of the stage.
        views: images and captions a sample.
        augment, captions: configurations (data/transforms.py, data/captions.py); stored views bring their own.
        preprocess, tokenizer: the model's.
        stored: a teacher's features of views that samples are then seen by; they come in `Batch.embeddings`.
        rank, size: this process among the ranks.
        start: samples seen so far, a multiple of `batch`.
        threads: decoding threads.
        tally: counts the bad samples of batches that were taken; each is replaced by the next good one in the order,
            wherever it is met. One more than it allows, and the loader raises its DataError. Default: none is.
        cache_bytes: memory for decoded images.
        prefetch_bytes: memory for batches ahead of the one in use; one is always made ahead.
        pin: whether images and tokens are put into page-locked memory, from which a GPU copies without waiting.
    """

    wait_s: float
    """Seconds the consumer has waited for data since the loader started."""

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch: int,
        seed: int,
        views: Views,
        augment: Augment,
        captions: CaptionPolicy,
        preprocess: Preprocess,
        tokenizer: Tokenizer,
        stored: StoredViews | None = None,
        rank: int = 0,
        size: int = 1,
        start: int = 0,
        threads: int = 1,
        tally: Tally | None = None,
        cache_bytes: int = 512 << 20,
        prefetch_bytes: int = 1 << 30,
        pin: bool = False,
    ) -> None:
        if len(dataset) < batch:
            raise DataError(
                f"'{dataset.name}' has {len(dataset)} samples to train on, fewer than one batch of {batch}",
                "lower `batch`, or use more data",
            )
        self.wait_s = 0.0
        self._dataset, self._uids, self._seed, self._views = dataset, dataset.uids, seed, views
        decides = (seed, augment, captions) if stored is None else (stored.seed, stored.augment, stored.captions)
        self._maker = ViewMaker(*decides, preprocess, tokenizer)
        self._tokenizer, self._stored, self._pin = tokenizer, stored, pin
        self._batch, self._share, self._rank, self._start = batch, batch // size, rank, start
        self._by_uid = np.argsort(dataset.column("uid"), order=("high", "low"))
        self._order = Shuffled(len(dataset), seed)
        self._tally = tally or Tally(dataset.name, len(dataset))
        self._cache_bytes = cache_bytes
        self._cache: dict[int, Sample] = {}
        self._lock = threading.Lock()
        self._shape = (self._share, 3, preprocess.image_size, preprocess.image_size)
        fitting = prefetch_bytes // (views.images * int(np.prod(self._shape)))
        self._ahead = max(1, min(fitting, max(AHEAD, threads + 1)))
        self._reuse, self._spare = fitting > self._ahead, list[np.ndarray]()
        self._part = min(max(-(-self._share // threads), PART.start), PART.stop - 1)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="loader")

    def __iter__(self) -> Iterator[Batch]:
        positions = count(self._start, self._batch)
        ahead = deque(self._begin(next(positions)) for _ in range(self._ahead))
        while True:
            yield self._take(ahead, positions)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _take(self, ahead: deque[_Making], positions: Iterator[int]) -> Batch:
        """The next batch; only then another is begun, for a batch may take gigabytes."""
        asked = time.perf_counter()
        making = ahead.popleft()
        batch = making.done.result()
        self.wait_s += time.perf_counter() - asked
        for _, row, bad in sorted(making.bad, key=lambda met: met[0]):
            self._tally.meet(self._dataset, row, bad)
        if batch is None:
            raise DataError(f"no sample of '{self._dataset.name}' can be used", f"found: {self._tally.found}")
        ahead.append(self._begin(next(positions)))
        return batch

    def _begin(self, start: int) -> _Making:
        """Have this rank's part of the global batch that begins at a position made."""
        firsts = range(0, self._share, self._part)
        images = [self._memory() for _ in range(self._views.images)]
        making = _Making(start + self._rank * self._share, images, self._share, self._views.captions, len(firsts))
        for first in firsts:
            self._pool.submit(self._make, making, range(first, min(first + self._part, self._share)))
        return making

    def _memory(self) -> Tensor:
        """Room for a view's pixels; used again once nobody refers to it, as fresh pages cost a tenth of the time."""
        if self._pin:  # torch itself keeps such memory
            return torch.empty(self._shape, dtype=torch.uint8, pin_memory=True)
        if not self._reuse:
            return torch.empty(self._shape, dtype=torch.uint8)
        try:
            memory = self._spare.pop()
        except IndexError:
            memory = np.empty(self._shape, np.uint8)
        lent = memory.view()
        weakref.finalize(lent, self._spare.append, memory).atexit = False
        return torch.from_numpy(lent)

    def _make(self, making: _Making, places: range) -> None:
        """Make some samples of a batch, a block at a time, and close the batch if they are its last."""
        try:
            start = making.start + places.start
            epochs, rows = (values.tolist() for values in self._rows(start, len(places)))
            found = self._read(rows)
            for at in range(0, len(places), BLOCK):
                block = range(at, min(at + BLOCK, len(places)))
                shown = [self._shown(making, start + n, epochs[n], rows[n], found[rows[n]]) for n in block]
                self._lay(making, places.start + at, shown)
            if making.finish_part():
                making.finish(self._close(making))
        except _TooManyBad:
            making.finish(None)
        except BaseException as error:  # handed to the consumer, as an executor does
            making.fail(error)

    def _lay(self, making: _Making, place: int, shown: Sequence[Shown]) -> None:
        """Put made samples into their places of the batch."""
        here = slice(place, place + len(shown))
        for view, images in enumerate(making.images):
            self._maker.images(shown, view, images[here].numpy())
        for view, texts in enumerate(making.texts):
            texts[here] = self._maker.captions(shown, view)
        making.uids[here] = [sample.uid for sample in shown]
        making.numbers[here] = [sample.number for sample in shown]

    def _close(self, making: _Making) -> Batch:
        tokens = tuple(self._tokenizer(texts) for texts in making.texts)
        features = {} if self._stored is None else self._stored.features(making.uids, making.numbers)
        if self._pin:
            tokens = tuple(ids.pin_memory() for ids in tokens)
            features = {name: values.pin_memory() for name, values in features.items()}
        return Batch(images=tuple(making.images), tokens=tokens, uids=tuple(making.uids), embeddings=features)

    def _rows(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Epoch and row of the data set at each of these positions."""
        epochs, places = self._order.rows(start, count)
        return epochs, self._by_uid[places]

    def _read(self, rows: Sequence[int]) -> dict[int, Sample]:
        """Picture, from the cache or still encoded, and captions of each row."""
        found: dict[int, Sample] = {row: self._cache[row] for row in rows if row in self._cache}
        missing = [row for row in dict.fromkeys(rows) if row not in found]
        if missing:
            found.update(zip(missing, zip(self._dataset.images(missing), self._dataset.captions(missing))))
        return found

    def _shown(self, making: _Making, position: int, epoch: int, row: int, sample: Sample) -> Shown:
        """The sample at a position, decoded; instead of a bad one the next good one in the order."""
        first, bad = position, set[int]()
        while True:
            try:
                picture = self._decoded(row, sample)
            except BadSample as error:
                making.bad.append((first, row, error))
                bad.add(row)
            else:
                break
            if len(bad) > min(self._tally.allowed, len(self._dataset) - 1):
                raise _TooManyBad
            position += 1
            epoch, row = (values.item() for values in self._rows(position, 1))
            sample = self._read([row])[row]
        uid = self._uids[row]
        number = epoch if self._stored is None else epoch % self._stored.num_views
        return Shown(number, uid, picture, sample[1])

    def _decoded(self, row: int, sample: Sample) -> Picture:
        """Cache what still fits. A full cache stays as it is: in shuffled epochs no sample is likelier than others."""
        encoded, captions = sample
        if not isinstance(encoded, bytes):
            return encoded
        picture = self._maker.decode(encoded)
        size = num_bytes(picture)
        with self._lock:
            if size <= self._cache_bytes and row not in self._cache:
                self._cache_bytes -= size
                self._cache[row] = (picture, captions)
        return picture


class _TooManyBad(Exception):
    """One position met more bad samples than are allowed in all: its batch is given up."""


class _Making:
    """A rank's batch while threads put samples into it: pixels, captions by view, ids and numbers of their draws; the
    bad samples met, as (position, row, why)."""

    def __init__(self, start: int, images: list[Tensor], size: int, num_captions: int, num_parts: int) -> None:
        self.start, self.images = start, images
        self.texts = [[""] * size for _ in range(num_captions)]
        self.uids, self.numbers = [""] * size, [0] * size
        self.bad: list[tuple[int, int, BadSample]] = []
        self.done: Future[Batch | None] = Future()
        self._left, self._lock = num_parts, threading.Lock()

    def finish_part(self) -> bool:
        """Whether that was the last part."""
        with self._lock:
            self._left -= 1
            return self._left == 0

    def finish(self, batch: Batch | None) -> None:
        """The batch is made, or given up."""
        with self._lock:
            if not self.done.done():
                self.done.set_result(batch)

    def fail(self, error: BaseException) -> None:
        """The first error is the batch's."""
        with self._lock:
            if not self.done.done():
                self.done.set_exception(error)
