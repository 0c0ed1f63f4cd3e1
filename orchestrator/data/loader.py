"""The training loader: a function from position to batch, computed ahead of the step that needs it.

The global order is a keyed permutation of the data for each epoch; global batch number k holds positions [k*batch, (k+1)*batch), and
rank r of W takes its r-th contiguous W-th. Augmentation and caption choice draw from (seed, purpose, epoch, uid). So what is seen
depends neither on ranks nor on workers, and starting at any position costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from orchestrator.data.batch import Batch, Views
from orchestrator.data.dataset import Dataset
from orchestrator.data.preprocess import Preprocess, Tokenizer


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
        augment: Any,
        captions: Any,
        preprocess: Preprocess,
        tokenizer: Tokenizer,
        rank: int = 0,
        size: int = 1,
        start: int = 0,
        threads: int = 1,
    ) -> None:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Batch]:
        raise NotImplementedError

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exc: object) -> None:
        raise NotImplementedError
