"""The pixels and tokens that an `embed` stage encodes, in batches that threads make ahead of the encoder.

They are exactly what a training's loader makes of the same view (data/views.py), whose number stands where the epoch
does there. Captions are compared as text: each distinct one is tokenised and encoded once.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from orchestrator.data.bad import BadSample
from orchestrator.data.captions import choose
from orchestrator.data.dataset import Caption, Dataset
from orchestrator.data.preprocess import Preprocess, Tokenizer
from orchestrator.data.views import Picture, Shown, ViewMaker
from orchestrator.stages.embed.config import EmbedStage

SORTED = 16
"""Batches of captions that are sorted by length together, so that little padding is encoded."""
AT_ONCE = 4096
"""Samples whose captions are looked at together."""
NO_PICTURE: Picture = np.empty(0, np.uint8)
"""Captions are chosen without looking."""


@dataclass(frozen=True)
class Inputs:
    """What to encode next: `side` is "image" or "text"; each piece is encoded at once.

    Attributes:
        size: features that come of it.
        pieces: (places among these, pixels [B, 3, H, W] uint8 or tokens [B, L] int64).
        bad: (places among these, row of the data set, why) of each sample whose image cannot be decoded.
    """

    side: str
    size: int
    pieces: tuple[tuple[np.ndarray, Tensor], ...]
    bad: tuple[tuple[slice, int, BadSample], ...] = ()


class Batches:
    """All views of a data set's samples, in the order of `dataset`.

    Args:
        dataset: in uid order.
        config: the stage's.
        preprocess, tokenizer: the model's.
    """

    text_rows: np.ndarray
    """[samples * views]: which distinct caption each view shows."""

    def __init__(self, dataset: Dataset, config: EmbedStage, preprocess: Preprocess, tokenizer: Tokenizer) -> None:
        self._dataset, self._uids, self._config = dataset, dataset.uids, config
        self._preprocess, self._tokenizer = preprocess, tokenizer
        self._maker = ViewMaker(config.seed, config.augment, config.captions, preprocess, tokenizer)
        self._views = max(1, config.views)
        self.text_rows, self._first = self._distinct()

    @property
    def images(self) -> int:
        """Images to encode: every view of every sample."""
        return len(self._dataset) * self._views

    @property
    def texts(self) -> int:
        """Captions to encode: the distinct ones."""
        return len(self._first)

    def ahead(self, position: int, threads: int) -> Iterator[Inputs]:
        """What is to be encoded from a position on (images, then texts), made by threads before it is asked for."""
        jobs = self._jobs(position)
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

    def _jobs(self, position: int) -> Iterator[partial[Inputs]]:
        samples = max(1, self._config.batch // self._views)
        for start in range(position // self._views, len(self._dataset), samples):
            yield partial(self._images, range(start, min(start + samples, len(self._dataset))))
        chunk = SORTED * self._config.batch
        for start in range(max(0, position - self.images), self.texts, chunk):
            yield partial(self._texts, self._first[start : start + chunk])

    def _images(self, rows: range) -> Inputs:
        """All views of some samples, sample by sample; black ones of a bad sample."""
        views, size = self._views, len(rows) * self._views
        side = self._preprocess.image_size
        pixels, bad = np.zeros((size, 3, side, side), np.uint8), []
        for number, (row, data) in enumerate(zip(rows, self._dataset.images(rows))):
            here = slice(number * views, (number + 1) * views)
            try:
                pixels[here] = self._pixels(row, data)
            except BadSample as error:
                bad.append((here, row, error))
        return Inputs("image", size, ((np.arange(size), torch.from_numpy(pixels)),), tuple(bad))

    def _pixels(self, row: int, data: bytes) -> np.ndarray:
        """All views of one sample: [views, 3, H, W] uint8."""
        if not self._config.views:
            return self._preprocess.decode(data)[None]
        picture, uid = self._maker.decode(data), self._uids[row]
        return self._maker.images([Shown(view, uid, picture, ()) for view in range(self._views)], 0).numpy()

    def _texts(self, first: np.ndarray) -> Inputs:
        """Distinct captions by where they are first shown: tokens, in batches of about equal length."""
        rows, views = np.divmod(first, self._views)
        captions = self._dataset.captions(rows)
        texts = [self._caption(int(row), int(view), of) for row, view, of in zip(rows, views, captions)]
        lengths = [len(self._tokenizer([text])[0]) for text in texts]
        order = np.argsort(lengths, kind="stable")
        batch = self._config.batch
        places = [order[start : start + batch] for start in range(0, len(order), batch)]
        pieces = [(at, self._tokenizer([texts[place] for place in at.tolist()])) for at in places]
        return Inputs("text", len(texts), tuple(pieces))

    def _caption(self, row: int, view: int, captions: tuple[Caption, ...]) -> str:
        """The caption that a view of a sample shows."""
        if len(captions) == 1:
            return captions[0].text
        if not self._config.views:
            return choose(captions, self._config.captions, 0.0)
        return self._maker.captions([Shown(view, self._uids[row], NO_PICTURE, captions)], 0)[0]

    def _distinct(self) -> tuple[np.ndarray, np.ndarray]:
        """For each sample's view the number of its caption among the distinct ones; for these, the first view."""
        digests = np.empty((self.images, 16), np.uint8)
        for start in range(0, len(self._dataset), AT_ONCE):
            rows = range(start, min(start + AT_ONCE, len(self._dataset)))
            for row, captions in zip(rows, self._dataset.captions(rows)):
                for view in range(self._views):
                    text = self._caption(row, view, captions).encode()
                    digest = hashlib.sha256(text).digest()[:16]
                    digests[row * self._views + view] = np.frombuffer(digest, np.uint8)
        _, first, numbers = np.unique(digests.view("S16")[:, 0], return_index=True, return_inverse=True)
        order = np.argsort(first)
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        return place[numbers], first[order]
