"""What a model makes of the evaluation's images and texts, encoded once for all tasks.

This is the only place of the evaluation that touches a Model, and it uses `encode_image`, `encode_text` and `score`
only. Float32 throughout, no autocast. Equal texts are encoded once. Scores that are not finite are refused:
comparisons with NaN are false, so a diverged model would otherwise rank every right answer first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from orchestrator.data.bad import BadSample, Tally
from orchestrator.data.dataset import Dataset
from orchestrator.data.preprocess import Preprocess, Tokenizer
from orchestrator.errors import NotFiniteError
from orchestrator.models.interface import Model


class Images(Protocol):
    """Encoded images by row: a Dataset, or a benchmark set."""

    def images(self, rows: Sequence[int]) -> list[bytes]:
        """Those of some rows, in their order."""


@dataclass(frozen=True)
class Encoded:
    """One model's features of some rows of a data set and of some texts, and the measured speed of making them.

    Attributes:
        images: [R, d], row `rows[i]` of the data set at i.
        texts: [T, d].
        images_per_s, texts_per_s: forward passes only, without reading and decoding.
    """

    model: Model
    images: Tensor
    texts: Tensor
    rows: dict[int, int]
    places: dict[str, int]
    images_per_s: float
    texts_per_s: float

    def of_rows(self, rows: np.ndarray) -> Tensor:
        """Image features [len(rows), d] of rows of the data set."""
        return self.images[[self.rows[int(row)] for row in rows]]

    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """Text features [len(texts), d]."""
        return self.texts[[self.places[text] for text in texts]]

    @torch.inference_mode()
    def scores(self, images: Tensor, texts: Tensor) -> np.ndarray:
        """The model's scores [B, M] float32; NotFiniteError if one is NaN or infinite."""
        scores = self.model.score(images, texts).float().cpu().numpy()
        if not np.isfinite(scores).all():
            raise NotFiniteError(
                "the model's scores are not finite", "its training has diverged: look at its loss, lower learning_rate"
            )
        return scores


class BadImages(Exception):
    """Rows of the data set whose images cannot be decoded, and why. Without them the questions are others."""

    def __init__(self, rows: Mapping[int, BadSample]) -> None:
        super().__init__(f"{len(rows)} images cannot be decoded")
        self.rows = rows


def without(dataset: Dataset, found: BadImages, tally: Tally) -> Dataset:
    """The data set less its bad images, each counted; DataError if they are too many."""
    for row, bad in found.rows.items():
        tally.meet(dataset, row, bad)
    return dataset.take(np.delete(np.arange(len(dataset)), list(found.rows)))


@torch.inference_mode()
def encode(
    model: Model,
    preprocess: Preprocess,
    tokenizer: Tokenizer,
    dataset: Images,
    rows: Sequence[int],
    texts: Sequence[str],
    *,
    batch: int,
    threads: int,
    tick: Callable[[int], None],
) -> Encoded:
    """Encode rows of a data set and distinct texts with a model that is in eval mode on its device.

    Args:
        batch: images or texts a forward pass.
        threads: threads that decode images.
        tick: called with the number of images or texts done by each forward pass; may raise to stop.

    Raises:
        BadImages: all those among the rows. Left out here, they would change the questions behind the tasks' backs.
    """
    device = next(model.parameters()).device
    images, image_s, bad = [], 0.0, dict[int, BadSample]()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            decoded = list(pool.map(lambda data: _decode(preprocess, data), dataset.images(part)))
            bad |= {row: found for row, found in zip(part, decoded) if isinstance(found, BadSample)}
            if bad:
                continue
            pixels = preprocess.normalise(torch.from_numpy(np.stack(decoded)).to(device))  # type: ignore[arg-type]
            features, seconds = _timed(model.encode_image, pixels)
            images.append(features)
            image_s += seconds
            tick(len(part))
    if bad:
        raise BadImages(bad)
    encoded, text_s = [], 0.0
    for start in range(0, len(texts), batch):
        tokens = tokenizer(texts[start : start + batch]).to(device)
        features, seconds = _timed(model.encode_text, tokens)
        encoded.append(features)
        text_s += seconds
        tick(len(tokens))
    return Encoded(
        model=model,
        images=torch.cat(images),
        texts=torch.cat(encoded),
        rows={int(row): place for place, row in enumerate(rows)},
        places={text: place for place, text in enumerate(texts)},
        images_per_s=len(rows) / image_s,
        texts_per_s=len(texts) / text_s,
    )


def _decode(preprocess: Preprocess, data: bytes) -> np.ndarray | BadSample:
    """[3, H, W] uint8, or why there are none."""
    try:
        return preprocess.decode(data)
    except BadSample as bad:
        return bad


def _timed(forward: Callable[[Tensor], Tensor], inputs: Tensor) -> tuple[Tensor, float]:
    start = time.perf_counter()
    features = forward(inputs).float()
    if features.is_cuda:
        torch.cuda.synchronize(features.device)
    return features, time.perf_counter() - start
