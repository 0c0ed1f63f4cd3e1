"""`ViewMaker`: from a stored sample to what is seen of it, the same in whatever stage and process it is made.

A view's pixels and caption follow from (seed, purpose, number, uid, view). The number is the epoch in a training, or
that of a stored view: a teacher's features were computed in advance, and student and teacher see the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from orchestrator.data import jpeg
from orchestrator.data.captions import CaptionPolicy, compose
from orchestrator.data.dataset import Caption
from orchestrator.data.draws import NUM_DRAWS, uniforms
from orchestrator.data.preprocess import Preprocess, Tokenizer, composite, load
from orchestrator.data.transforms import Augment, augment, draw

Picture = Image | np.ndarray
"""A decoded image: a JPEG as data/jpeg.py gives it, any other as `preprocess.load` does."""

FIRST = (0.0,) * NUM_DRAWS


def num_bytes(picture: Picture) -> int:
    """Memory that a decoded image takes; PIL stores RGB in four bytes, too."""
    return picture.nbytes if isinstance(picture, np.ndarray) else 4 * picture.width * picture.height


class Shown(NamedTuple):
    """A sample about to be seen, decoded, and the number (of an epoch, or a stored view) its draws are named by."""

    number: int
    uid: str
    picture: Picture
    captions: tuple[Caption, ...]


class ViewMaker:
    """Makes views by one seed and one set of settings. No state, any number of threads.

    Args:
        seed: of the stage that decides what is seen.
        augment, captions: its configurations.
        preprocess, tokenizer: the model's.
        decoder: of JPEGs.
    """

    def __init__(
        self,
        seed: int,
        augment: Augment,
        captions: CaptionPolicy,
        preprocess: Preprocess,
        tokenizer: Tokenizer,
        decoder: jpeg.Decoder = "auto",
    ) -> None:
        self._seed, self._augment, self._captions, self._decoder = seed, augment, captions, decoder
        self._size, self._tokenizer = preprocess.image_size, tokenizer

    def decode(self, data: bytes) -> Picture:
        """Encoded bytes to what all views of an image are made of. BadSample if undecodable."""
        if data.startswith(jpeg.START):
            return jpeg.decode(data, self._size, self._augment, self._decoder)
        return load(data)

    def images(self, shown: Sequence[Shown], view: int, out: np.ndarray | None = None) -> Tensor:
        """One augmented view of each sample: [B, 3, H, W] uint8, in `out`'s memory if given."""
        pixels = np.empty((len(shown), 3, self._size, self._size), np.uint8) if out is None else out
        drawings: dict[int, tuple[Image, tuple[int, int, int]]] = {}
        for place, (number, uid, picture, _) in enumerate(shown):
            draws = uniforms(self._seed, "augment", number, uid, view)
            if isinstance(picture, np.ndarray):
                height, width, _ = picture.shape
                jpeg.show(picture, draw(width, height, self._augment, draws), pixels[place])
            else:
                drawings[place] = augment(picture, self._size, self._augment, draws)
        if drawings:
            made = composite([image for image, _ in drawings.values()], [colour for _, colour in drawings.values()])
            pixels[list(drawings)] = made
        return torch.from_numpy(pixels)

    def captions(self, shown: Sequence[Shown], view: int) -> list[str]:
        """The caption of each sample that a view shows."""
        return [
            self.caption(captions, uniforms(self._seed, "caption", number, uid, view))
            for number, uid, _, captions in shown
        ]

    def caption(self, captions: Sequence[Caption], draws: Sequence[float] = FIRST) -> str:
        """The caption that is seen by these draws; by default the first that may be drawn."""
        return compose(captions, self._captions, draws, self._tokenizer.shorten)

    def tokens(self, shown: Sequence[Shown], view: int) -> Tensor:
        """One caption of each sample: [B, L] int64, L the longest of them."""
        return self._tokenizer(self.captions(shown, view))
