"""The training loader: a function from position to batch, computed ahead of the step that needs it.

The global order is that of `read` (read.py): a permutation of all of the data, or of blocks, for each epoch. Global
batch number k holds positions [k*batch, (k+1)*batch), across the end of an epoch too, and rank r of W takes its r-th
contiguous W-th. Augmentation and caption choice draw from (seed, purpose, epoch, uid, view); with stored views
(data/embeddings.py) a sample shows these in turn instead, and the teacher's features come along. So what is seen
depends neither on ranks, threads nor processes, and starting at any position costs nothing. In exact order it does not
depend on shards nor their order, either.

Threads of this process make the batches (making.py), or child processes a part of each (processes.py). Finished
batches ahead are bounded in number and bytes.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from orchestrator.data.bad import BadSample, Tally
from orchestrator.data.batch import Batch, Views
from orchestrator.data.captions import CaptionPolicy, Survival
from orchestrator.data.dataset import Dataset
from orchestrator.data.jpeg import Decoder
from orchestrator.data.making import Made, Maker, Wanted
from orchestrator.data.preprocess import Preprocess, Tokenizer
from orchestrator.data.processes import Processes
from orchestrator.data.read import ReadMode
from orchestrator.data.transforms import Augment
from orchestrator.errors import DataError

if TYPE_CHECKING:
    from orchestrator.data.embeddings import StoredViews

AHEAD = 3
"""Batches under way before the one that is asked for, at least, where `prefetch_bytes` allows."""


class Loader:
    """Endless batches from a position on. Context manager: leaving it stops threads and processes.

    Args:
        dataset: what to read; it must not be smaller than one global batch.
        batch: global batch in samples; divisible by `size`.
        seed: of the stage.
        views: images and captions a sample.
        augment, captions: configurations (data/transforms.py, data/captions.py); stored views bring their own.
        preprocess, tokenizer: the model's.
        stored: a teacher's features of views that samples are then seen by; they come in `Batch.embeddings`.
        read: the order.
        decoder: of JPEGs.
        rank, size: this process among the ranks.
        start: samples seen so far, a multiple of `batch`.
        threads: that make batches in this process.
        processes: child processes that make them instead, if any.
        reopen: gives each of these the same data set, in its own process; picklable.
        tally: counts the bad samples of batches that were taken; each is replaced by the next good one in the order,
            wherever it is met. One more than it allows, and the loader raises its DataError. Default: none is.
        survival: counts what became of joined captions in batches that were taken.
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
        read: ReadMode = "exact",
        decoder: Decoder = "auto",
        rank: int = 0,
        size: int = 1,
        start: int = 0,
        threads: int = 1,
        processes: int = 0,
        reopen: Callable[[], Dataset] | None = None,
        tally: Tally | None = None,
        survival: Survival | None = None,
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
        self._dataset, self._views, self._stored, self._pin = dataset, views, stored, pin
        self._batch, self._start = batch, start
        self._tally = tally or Tally(dataset.name, len(dataset))
        self._survival = survival or Survival()
        wanted = Wanted(
            batch=batch,
            seed=seed,
            read=read,
            views=views,
            draws=seed if stored is None else stored.seed,
            augment=augment if stored is None else stored.augment,
            captions=captions if stored is None else stored.captions,
            num_views=None if stored is None else stored.num_views,
            preprocess=preprocess,
            tokenizer=tokenizer,
            allowed=self._tally.allowed,
            decoder=decoder,
        )
        share = batch // size
        places = range(rank * share, (rank + 1) * share)
        self._shape = (share, 3, preprocess.image_size, preprocess.image_size)
        fitting = prefetch_bytes // (views.images * int(np.prod(self._shape)))
        self._ahead = max(1, min(fitting, max(AHEAD, (processes or threads) + 1)))
        self._reuse, self._spare = fitting > self._ahead, list[np.ndarray]()
        self._maker: Maker | Processes
        if processes and reopen is not None:
            self._maker = Processes(
                reopen, wanted, places, processes=processes, slots=self._ahead + 1, cache_bytes=cache_bytes
            )
        else:
            self._maker = Maker(dataset, wanted, places, threads=threads, cache_bytes=cache_bytes)

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes read of the shards so far, and requests made, wherever batches are made."""
        return self._maker.traffic

    def __iter__(self) -> Iterator[Batch]:
        positions = count(self._start, self._batch)
        ahead = deque(self._begin(next(positions)) for _ in range(self._ahead))
        for taken in count(self._start, self._batch):
            yield self._take(ahead, positions)
            self._maker.passed(taken + self._batch)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exc: object) -> None:
        self._maker.close()

    def _take(self, ahead: deque[_Coming], positions: Iterator[int]) -> Batch:
        """The next batch; only then another is begun, for a batch may take gigabytes."""
        asked = time.perf_counter()
        batch, bad, survival = ahead.popleft().result()
        self.wait_s += time.perf_counter() - asked
        for _, row, why in sorted(bad, key=lambda met: met[0]):
            self._tally.meet(self._dataset, row, why)
        if batch is None:
            raise DataError(f"no sample of '{self._dataset.name}' can be used", f"found: {self._tally.found}")
        self._survival.merge(survival.as_json())
        ahead.append(self._begin(next(positions)))
        return batch

    def _begin(self, start: int) -> _Coming:
        """Have this rank's part of the global batch that begins at a position made."""
        images = [self._memory() for _ in range(self._views.images)]
        coming: _Coming = Future()
        made = self._maker.begin(start, [pixels.numpy() for pixels in images])
        made.add_done_callback(partial(self._close, images, coming))
        return coming

    def _close(self, images: list[Tensor], coming: _Coming, future: Future[Made]) -> None:
        """Make a batch of what was made, in the thread that made the last of it."""
        if future.cancelled():
            return
        try:
            made = future.result()
            batch = self._whole(images, made) if made.usable else None
            coming.set_result((batch, made.bad, made.survival))
        except BaseException as error:  # handed to the consumer, as an executor does
            coming.set_exception(error)

    def _whole(self, images: list[Tensor], made: Made) -> Batch:
        tokens = tuple(map(torch.from_numpy, made.tokens))
        features = {} if self._stored is None else self._stored.features(made.uids, made.numbers)
        if self._pin:
            tokens = tuple(ids.pin_memory() for ids in tokens)
            features = {name: values.pin_memory() for name, values in features.items()}
        return Batch(images=tuple(images), tokens=tokens, uids=tuple(made.uids), embeddings=features)

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


_Coming = Future[tuple[Batch | None, list[tuple[int, int, BadSample]], Survival]]
"""A batch that is being made (None: given up), the bad samples met, and what became of joined captions."""
