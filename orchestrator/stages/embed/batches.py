"""The pixels and tokens that an `embed` stage encodes, in batches that threads make ahead of the encoder.

They are exactly what a training's loader makes of the same view (data/views.py), whose number stands where the epoch
does there. Images are taken in the order of the data's rows, in which they lie in the shards. Captions are compared as
text: each distinct one is tokenised and encoded once.
"""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from orchestrator.data.bad import BadSample
from orchestrator.data.dataset import Caption, Dataset
from orchestrator.data.preprocess import Preprocess, Tokenizer
from orchestrator.data.views import Picture, Shown, ViewMaker
from orchestrator.stages.embed.config import EmbedStage

AT_ONCE = 4096
"""Samples whose captions are looked at together."""
NO_PICTURE: Picture = np.empty(0, np.uint8)
"""Captions are chosen without looking."""


@dataclass(frozen=True)
class Inputs:
    """What to encode next; each piece is encoded at once.

    Attributes:
        size: features that come of it.
        pieces: (places among these, pixels [B, 3, H, W] uint8 or tokens [B, L] int64).
        bad: (places among these, position in the data set, why) of each sample whose image cannot be decoded.
    """

    size: int
    pieces: tuple[tuple[np.ndarray, Tensor], ...]
    bad: tuple[tuple[slice, int, BadSample], ...] = ()


@dataclass(frozen=True)
class Distinct:
    """The distinct captions of all samples' views.

    Attributes:
        rows: [samples * views] uint32, samples in uid order: the row of text.npy for each view.
        first: [distinct] int64: where each is met first, as a position among the views in the data's own order.
        places: [distinct] uint32: the row of text.npy of each of `first`.
    """

    rows: np.ndarray
    first: np.ndarray
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def pack(self) -> bytes:
        """As bytes."""
        buffer = io.BytesIO()
        for values in (self.rows, self.first, self.places):
            np.save(buffer, values)
        return buffer.getvalue()

    @classmethod
    def unpack(cls, data: bytes) -> Distinct:
        """Of such bytes."""
        buffer = io.BytesIO(data)
        return cls(*(np.load(buffer) for _ in range(3)))


class Batches:
    """All views of a data set's samples, in the order of `dataset`.

    Args:
        dataset: the samples, each once.
        config: the stage's.
        preprocess, tokenizer: the model's.
    """

    def __init__(self, dataset: Dataset, config: EmbedStage, preprocess: Preprocess, tokenizer: Tokenizer) -> None:
        self._dataset, self._uids, self._config = dataset, dataset.uids, config
        self._preprocess, self._tokenizer = preprocess, tokenizer
        self._maker = ViewMaker(config.seed, config.augment, config.captions, preprocess, tokenizer)
        self._views = max(1, config.views)

    def images(self, positions: range, threads: int) -> Iterator[Inputs]:
        """All views of the samples at these positions, sample by sample."""
        samples = max(1, self._config.batch // self._views)
        starts = range(positions.start, positions.stop, samples)
        return _ahead((partial(self._images, range(s, min(s + samples, positions.stop))) for s in starts), threads)

    def texts(self, first: np.ndarray, threads: int) -> Iterator[Inputs]:
        """Distinct captions by where they are first met, shorter ones together, so that little padding is encoded."""
        return _ahead([partial(self._texts, first)], threads)

    def distinct(self, order: np.ndarray) -> Distinct:
        """Compare the captions of all views; `order` [samples] puts the samples in uid order.

        Holds 16 bytes a view, and about 90 in all while they are sorted.
        """
        digests = np.empty((len(self._dataset) * self._views, 16), np.uint8)
        for start in range(0, len(self._dataset), AT_ONCE):
            rows = range(start, min(start + AT_ONCE, len(self._dataset)))
            for row, captions in zip(rows, self._dataset.captions(rows)):
                for view in range(self._views):
                    text = self._caption(row, view, captions).encode()
                    digest = hashlib.sha256(text).digest()[:16]
                    digests[row * self._views + view] = np.frombuffer(digest, np.uint8)
        _, first, numbers = np.unique(digests.view("S16")[:, 0], return_index=True, return_inverse=True)
        numbers = numbers.reshape(-1, self._views)[order].ravel()
        _, shown = np.unique(numbers, return_index=True)
        place = np.empty(len(first), np.uint32)
        place[np.argsort(shown)] = np.arange(len(first))
        met = np.argsort(first)
        return Distinct(place[numbers], first[met], place[met])

    def _images(self, rows: range) -> Inputs:
        """All views of some samples; black ones of a bad sample."""
        views, size = self._views, len(rows) * self._views
        side = self._preprocess.image_size
        pixels, bad = np.zeros((size, 3, side, side), np.uint8), []
        for number, (row, data) in enumerate(zip(rows, self._dataset.images(rows))):
            here = slice(number * views, (number + 1) * views)
            try:
                pixels[here] = self._pixels(row, data)
            except BadSample as error:
                bad.append((here, row, error))
        return Inputs(size, ((np.arange(size), torch.from_numpy(pixels)),), tuple(bad))

    def _pixels(self, row: int, data: bytes) -> np.ndarray:
        """All views of one sample: [views, 3, H, W] uint8."""
        if not self._config.views:
            return self._preprocess.decode(data)[None]
        picture, uid = self._maker.decode(data), self._uids[row]
        return self._maker.images([Shown(view, uid, picture, ()) for view in range(self._views)], 0).numpy()

    def _texts(self, first: np.ndarray) -> Inputs:
        """Tokens of distinct captions, in batches of about equal length."""
        rows, views = np.divmod(first, self._views)
        captions = self._dataset.captions(rows)
        texts = [self._caption(int(row), int(view), of) for row, view, of in zip(rows, views, captions)]
        lengths = [len(self._tokenizer([text])[0]) for text in texts]
        order = np.argsort(lengths, kind="stable")
        batch = self._config.batch
        places = [order[start : start + batch] for start in range(0, len(order), batch)]
        pieces = [(at, self._tokenizer([texts[place] for place in at.tolist()])) for at in places]
        return Inputs(len(texts), tuple(pieces))

    def _caption(self, row: int, view: int, captions: tuple[Caption, ...]) -> str:
        """The caption that a view of a sample shows."""
        if not self._config.views or (len(captions) == 1 and self._config.captions.join is None):  # nothing to draw
            return self._maker.caption(captions)
        return self._maker.captions([Shown(view, self._uids[row], NO_PICTURE, captions)], 0)[0]


def _ahead(jobs: Iterable[partial[Inputs]], threads: int) -> Iterator[Inputs]:
    """What jobs make, in their order, made by threads before it is asked for."""
    waiting: deque[Future[Inputs]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="embed") as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(job))
                if len(waiting) > threads + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
