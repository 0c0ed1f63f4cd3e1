"""From encoded image bytes to pixels, and from captions to token ids: the two settings a Model carries with it.

Images with alpha are composited on a background at decode time: fixed in evaluation, possibly random in training. Pixels stay
uint8 until the training step or the evaluator normalises them on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Preprocess:
    """How a model wants its images. JSON in the Model artifact.

    Attributes:
        image_size: side in pixels.
        mean, std: per channel, for pixels in [0, 1].
        background: RGB, 0 to 255, behind transparent pixels in evaluation.
    """

    image_size: int
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    background: tuple[int, int, int] = (255, 255, 255)

    def decode(self, data: bytes) -> np.ndarray:
        """Encoded image to [3, H, W] uint8: composited, resized (bicubic, antialiased) and centre-cropped. DataError if undecodable."""
        raise NotImplementedError

    def normalise(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] uint8 to float32, (x/255 - mean)/std, on the pixels' device."""
        raise NotImplementedError


@dataclass(frozen=True)
class Tokenizer:
    """CLIP's byte-pair encoding (open_clip's SimpleTokenizer). JSON in the Model artifact. Equal captions are encoded once."""

    name: str = "clip-bpe"
    context_length: int = 77

    def __call__(self, texts: Sequence[str], cut: bool = True) -> Tensor:
        """Texts to [M, L] int64, zero-padded, L the longest of them when `cut`, else `context_length`."""
        raise NotImplementedError
