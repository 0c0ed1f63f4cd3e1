"""The training loader: a function from position to batch, computed ahead of the step that needs it.

The global order is a keyed permutation of the data, in uid order, for each epoch; global batch number k holds
positions [k*batch, (k+1)*batch), across the end of an epoch too, and rank r of W takes its r-th contiguous W-th.
Augmentation and caption choice draw from (seed, purpose, epoch, uid, view). So what is seen depends neither on ranks,
workers, shards nor their order, and starting at any position costs nothing. A batch is made whole by one thread,
several batches at a time.

Decoded images are kept in memory up to `cache_bytes`: small drawings all fit, and decoding dominates.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from orchestrator.data.batch import Batch, Views
from orchestrator.data.captions import CaptionPolicy, choose
from orchestrator.data.dataset import Caption, Dataset
from orchestrator.data.draws import uniforms
from orchestrator.data.preprocess import Preprocess, Tokenizer, composite, load
from orchestrator.data.sampler import Shuffled
from orchestrator.data.transforms import Augment, augment
from orchestrator.errors import DataError

Loaded = tuple[Image, tuple[Caption, ...]]
"""A sample ready to be shown: its decoded image and its captions."""
AHEAD = 3
"""Batches under way before the one that is asked for, at least."""


class Loader:
    """Endless batches from a position on. Context manager: leaving it stops the threads.

    Args:
        dataset: what to read; it must not be smaller than one global batch.
        batch: global batch in samples; divisible by `size`.
        seed: of the stage.
        views: images and captions a sample.
        augment, captions: configurations (data/transforms.py, data/captions.py).
        preprocess, tokenizer: the model's.
        rank, size: this process among the ranks.
        start: samples seen so far, a multiple of `batch`.
        threads: decoding threads.
        max_bad_samples: how many samples may turn out undecodable (in this process); each is replaced by the next
            one in the order, wherever it is met. One more, and the loader raises DataError naming it.
        cache_bytes: memory for decoded images.
    """

    wait_s: float
    """Seconds the consumer has waited for data since the loader started."""
    bad_samples: dict[str, str]
    """uid -> why it could not be decoded, of those replaced so far."""

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
        rank: int = 0,
        size: int = 1,
        start: int = 0,
        threads: int = 1,
        max_bad_samples: int = 0,
        cache_bytes: int = 512 << 20,
    ) -> None:
        if len(dataset) < batch:
            raise DataError(
                f"'{dataset.name}' has {len(dataset)} samples to train on, fewer than one batch of {batch}",
                "lower `batch`, or use more data",
            )
        self.wait_s = 0.0
        self.bad_samples = {}
        self._dataset, self._uids, self._seed, self._views = dataset, dataset.uids, seed, views
        self._augment, self._captions, self._preprocess, self._tokenizer = augment, captions, preprocess, tokenizer
        self._batch, self._share, self._rank, self._start = batch, batch // size, rank, start
        self._by_uid = np.argsort(dataset.column("uid"), order=("high", "low"))
        self._order = Shuffled(len(dataset), seed)
        self._max_bad_samples, self._cache_bytes = max_bad_samples, cache_bytes
        self._cache: dict[int, Loaded] = {}
        self._lock = threading.Lock()
        self._ahead = max(AHEAD, threads + 1)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="loader")

    def __iter__(self) -> Iterator[Batch]:
        position = self._start
        waiting: deque[Future[Batch]] = deque()
        while True:
            while len(waiting) < self._ahead:
                waiting.append(self._pool.submit(self._make, position))
                position += self._batch
            asked = time.perf_counter()
            batch = waiting.popleft().result()
            self.wait_s += time.perf_counter() - asked
            yield batch

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _make(self, start: int) -> Batch:
        """This rank's part of the global batch that begins at a position."""
        first = start + self._rank * self._share
        epochs, rows = self._rows(first, self._share)
        samples: list[Loaded] = []
        for place, sample in enumerate(self._samples(rows)):
            position = first + place
            while isinstance(sample, DataError):
                self._count_bad(rows[place], sample)
                position += 1
                epochs[place : place + 1], rows[place : place + 1] = self._rows(position, 1)
                sample = self._samples(rows[place : place + 1])[0]
            samples.append(sample)
        uids = tuple(self._uids[row] for row in rows.tolist())
        shown = list(zip(epochs.tolist(), uids, samples))
        images = tuple(self._images(shown, view) for view in range(self._views.images))
        tokens = tuple(self._tokens(shown, view) for view in range(self._views.captions))
        return Batch(images=images, tokens=tokens, uids=uids)

    def _rows(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Epoch and row of the data set at each of these positions."""
        epochs, places = self._order.rows(start, count)
        return epochs, self._by_uid[places]

    def _images(self, shown: Sequence[tuple[int, str, Loaded]], view: int) -> Tensor:
        """One augmented view of each (epoch, uid, sample): [B, 3, H, W] uint8."""
        names = [("augment", epoch, uid, view) for epoch, uid, _ in shown]
        size = self._preprocess.image_size
        made = [augment(s[0], size, self._augment, uniforms(self._seed, *n)) for n, (_, _, s) in zip(names, shown)]
        return torch.from_numpy(composite([image for image, _ in made], [colour for _, colour in made]))

    def _tokens(self, shown: Sequence[tuple[int, str, Loaded]], view: int) -> Tensor:
        """One caption of each (epoch, uid, sample): [B, L] int64."""
        draws = [uniforms(self._seed, "caption", epoch, uid, view)[0] for epoch, uid, _ in shown]
        return self._tokenizer([choose(s[1], self._captions, draw) for draw, (_, _, s) in zip(draws, shown)])

    def _samples(self, rows: np.ndarray) -> list[Loaded | DataError]:
        """Decoded image and captions of each row, from cache or shards; the error where it cannot be decoded."""
        found = {row: self._cache.get(row) for row in rows.tolist()}
        missing = [row for row, sample in found.items() if sample is None]
        results: dict[int, Loaded | DataError] = {r: s for r, s in found.items() if s}
        if missing:
            for row, data, captions in zip(missing, self._dataset.images(missing), self._dataset.captions(missing)):
                try:
                    results[row] = (load(data), captions)
                except DataError as error:
                    results[row] = error
            self._keep({row: results[row] for row in missing})
        return [results[row] for row in rows.tolist()]

    def _keep(self, samples: dict[int, Loaded | DataError]) -> None:
        """Cache what still fits. A full cache stays as it is: in shuffled epochs no sample is likelier than others."""
        with self._lock:
            for row, sample in samples.items():
                if isinstance(sample, DataError) or row in self._cache:
                    continue
                size = 4 * sample[0].width * sample[0].height  # PIL stores RGB in four bytes, too
                if size <= self._cache_bytes:
                    self._cache_bytes -= size
                    self._cache[row] = sample

    def _count_bad(self, row: int, error: DataError) -> None:
        with self._lock:
            self.bad_samples[self._uids[row]] = error.message
            count = len(self.bad_samples)
        if count > self._max_bad_samples or count == len(self._dataset):
            raise DataError(
                f"{self._dataset.describe(row)}: {error.message}",
                f"{count} bad samples, {self._max_bad_samples} allowed; repair or leave out the shard",
            )
