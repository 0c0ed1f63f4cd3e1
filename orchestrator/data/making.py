"""`Maker`: from positions in the order to pixels, tokens and ids, by threads of one process.

What is made of a position follows from the position, the data and what is `Wanted` alone. When what is made is the
loader's business (loader.py), which may have it done in other processes (processes.py).

Threads make the parts of a batch, straight into its memory; the last to finish closes it. Decoded images are kept in
memory up to `cache_bytes`: small drawings all fit.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from orchestrator.data.ahead import Ahead
from orchestrator.data.bad import BadSample
from orchestrator.data.batch import Views
from orchestrator.data.blocks import Blocked
from orchestrator.data.captions import CaptionPolicy, Survival
from orchestrator.data.dataset import Caption, Dataset
from orchestrator.data.jpeg import Decoder
from orchestrator.data.preprocess import Preprocess, Tokenizer
from orchestrator.data.read import ReadMode, stored_order, stored_sizes
from orchestrator.data.sampler import Shuffled
from orchestrator.data.transforms import Augment
from orchestrator.data.views import Picture, Shown, ViewMaker, num_bytes

PART = range(64, 1025)
"""Samples that a thread reads together."""
GROUP = 32
"""Samples of which the decoded pictures are held at once, besides those cached."""


@dataclass(frozen=True)
class Wanted:
    """What decides the batches of a data set. Picklable.

    Attributes:
        batch: global batch in samples.
        seed: of the order.
        read: which order (read.py).
        views: images and captions a sample.
        draws, augment, captions: seed, augmentation and policy that decide what is seen of a sample.
        num_views: of stored views, which are seen in turn; None: every epoch has views of its own.
        preprocess, tokenizer: the model's.
        allowed: bad samples in all.
        decoder: of JPEGs; changes no pixel.
    """

    batch: int
    seed: int
    read: ReadMode
    views: Views
    draws: int
    augment: Augment
    captions: CaptionPolicy
    num_views: int | None
    preprocess: Preprocess
    tokenizer: Tokenizer
    allowed: int
    decoder: Decoder = "auto"


class Sample(NamedTuple):
    """A sample at hand: its id, its picture, decoded or still encoded, and its captions."""

    uid: str
    picture: Picture | bytes
    captions: tuple[Caption, ...]


@dataclass
class Made:
    """Some places of a batch, in order; the pixels are where they were to be put. Picklable.

    Attributes:
        tokens: a caption, [n, L] int64, L the longest of them.
        uids: of the samples.
        numbers: of the epochs, or stored views, that their draws are named by.
        bad: samples that were left out: (position, place in the data, why).
        survival: what became of joined captions.
        usable: False where so many samples in a row were bad that the batch was given up.
    """

    tokens: tuple[np.ndarray, ...] = ()
    uids: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    bad: list[tuple[int, int, BadSample]] = field(default_factory=list)
    survival: Survival = field(default_factory=Survival)
    usable: bool = True


class Maker:
    """Makes the same places of any global batches.

    Args:
        dataset: the samples.
        wanted: what is to be made of them.
        places: of a global batch that are made here.
        threads: that make them.
        cache_bytes: memory for decoded images, in exact order; blocks are held encoded, and are not met again soon.
    """

    def __init__(self, dataset: Dataset, wanted: Wanted, places: range, *, threads: int, cache_bytes: int) -> None:
        self._dataset, self._wanted, self._places = dataset, wanted, places
        self._views = ViewMaker(
            wanted.draws, wanted.augment, wanted.captions, wanted.preprocess, wanted.tokenizer, wanted.decoder
        )
        self._ahead: Ahead | None = None
        self._order: Blocked | Shuffled
        if wanted.read == "block":
            self._by_place = stored_order(dataset)
            self._order = Blocked(stored_sizes(dataset, self._by_place), wanted.batch, wanted.seed)
            self._ahead = Ahead(dataset, self._by_place, self._order, places)
            cache_bytes = 0
        else:
            self._by_place = np.argsort(dataset.column("uid"), order=("high", "low"))
            self._order = Shuffled(len(dataset), wanted.seed)
        self._cache_bytes = cache_bytes
        self._cache: dict[int, Sample] = {}
        self._lock = threading.Lock()
        self._part = min(max(-(-len(places) // threads), PART.start), PART.stop - 1)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="loader")

    def begin(self, start: int, images: Sequence[np.ndarray]) -> Future[Made]:
        """Have the places of the global batch at a position made, the pixels of each view put into [n, 3, H, W]."""
        if self._ahead is not None:
            self._ahead.reach(start)
        firsts = range(0, len(self._places), self._part)
        making = _Making(start + self._places.start, images, self._wanted.views.captions, len(firsts))
        for first in firsts:
            self._pool.submit(self._make, making, range(first, min(first + self._part, len(self._places))))
        return making.done

    def passed(self, start: int) -> None:
        """All batches before this position have been taken."""
        if self._ahead is not None:
            self._ahead.passed(start)

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes read of the shards so far, and requests made."""
        return self._dataset.traffic.bytes, self._dataset.traffic.requests

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._ahead is not None:
            self._ahead.close()

    def _make(self, making: _Making, places: range) -> None:
        """Make some samples of a batch, a group at a time, and close the batch if they are its last."""
        try:
            start = making.start + places.start
            epochs, rows = (values.tolist() for values in self._rows(start, len(places)))
            found = self._read(start, rows)
            for at in range(0, len(places), GROUP):
                group = range(at, min(at + GROUP, len(places)))
                shown = [self._shown(making, start + n, epochs[n], rows[n], found[rows[n]]) for n in group]
                self._lay(making, places.start + at, shown)
            if making.finish_part():
                tokens = tuple(self._wanted.tokenizer(texts).numpy() for texts in making.texts)
                making.finish(Made(tokens, making.uids, making.numbers, making.bad, making.survival))
        except _TooManyBad:
            making.finish(Made(bad=making.bad, usable=False))
        except BaseException as error:  # handed to the consumer, as an executor does
            making.fail(error)

    def _lay(self, making: _Making, place: int, shown: Sequence[Shown]) -> None:
        """Put made samples into their places of the batch."""
        here = slice(place, place + len(shown))
        for view, images in enumerate(making.images):
            self._views.images(shown, view, images[here])
        for view, texts in enumerate(making.texts):
            texts[here] = self._views.captions(shown, view)
            self._count(making, shown, texts[here])
        making.uids[here] = [sample.uid for sample in shown]
        making.numbers[here] = [sample.number for sample in shown]

    def _count(self, making: _Making, shown: Sequence[Shown], texts: Sequence[str]) -> None:
        """Look what becomes of joined captions."""
        policy, tokenizer = self._wanted.captions, self._wanted.tokenizer
        if policy.join is not None:
            with making.lock:
                for sample, text in zip(shown, texts):
                    making.survival.add(sample.captions, policy, tokenizer.fits(text))

    def _rows(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Epoch and place in the data set at each of these positions."""
        epochs, places = self._order.rows(start, count)
        return epochs, self._by_place[places]

    def _read(self, start: int, rows: Sequence[int]) -> Mapping[int, Sample]:
        """The samples of the positions from `start` on, whose places in the data set are `rows`."""
        if self._ahead is not None:
            blocks = self._ahead.samples(start, len(rows))
            return {row: Sample(sample.uid, sample.image, sample.captions) for row, sample in blocks.items()}
        found = {row: self._cache[row] for row in rows if row in self._cache}
        missing = [row for row in dict.fromkeys(rows) if row not in found]
        if missing:
            read = self._dataset.read(missing)
            found.update((row, Sample(s.uid, s.image, s.captions)) for row, s in zip(missing, read))
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
            if len(bad) > min(self._wanted.allowed, len(self._dataset) - 1):
                raise _TooManyBad
            position += 1
            epoch, row = (values.item() for values in self._rows(position, 1))
            sample = self._read(position, [row])[row]
        views = self._wanted.num_views
        return Shown(epoch if views is None else epoch % views, sample.uid, picture, sample.captions)

    def _decoded(self, row: int, sample: Sample) -> Picture:
        """Cache what still fits. A full cache stays as it is: in shuffled epochs no sample is likelier than others."""
        if not isinstance(sample.picture, bytes):
            return sample.picture
        picture = self._views.decode(sample.picture)
        size = num_bytes(picture)
        with self._lock:
            if size <= self._cache_bytes and row not in self._cache:
                self._cache_bytes -= size
                self._cache[row] = sample._replace(picture=picture)
        return picture


class _TooManyBad(Exception):
    """One position met more bad samples than are allowed in all: its batch is given up."""


class _Making:
    """Places of a batch while threads put samples into them: pixels, captions by view, ids and numbers of their
    draws; the bad samples met."""

    def __init__(self, start: int, images: Sequence[np.ndarray], num_captions: int, num_parts: int) -> None:
        size = len(images[0])
        self.start, self.images = start, images
        self.texts = [[""] * size for _ in range(num_captions)]
        self.uids, self.numbers = [""] * size, [0] * size
        self.bad: list[tuple[int, int, BadSample]] = []
        self.survival = Survival()
        self.done: Future[Made] = Future()
        self.lock = threading.Lock()
        self._left = num_parts

    def finish_part(self) -> bool:
        """Whether that was the last part."""
        with self.lock:
            self._left -= 1
            return self._left == 0

    def finish(self, made: Made) -> None:
        """The places are made, or given up; the first word counts."""
        with self.lock:
            given_up, self._closed = self._closed, True
        if not given_up:
            self.done.set_result(made)

    def fail(self, error: BaseException) -> None:
        """The first error is theirs."""
        with self.lock:
            given_up, self._closed = self._closed, True
        if not given_up:
            self.done.set_exception(error)

    _closed = False
