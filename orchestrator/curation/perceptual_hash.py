"""A 64-bit hash of what an image looks like: the signs of the lowest frequencies of its cosine transform (pHash).

The image is laid on white, made grey and 32 pixels wide and high; of the 8 by 8 lowest frequencies of its discrete
cosine transform each gives a bit, whether it is above their median, the constant one left out of that (Zauner 2010;
the packages imagehash and imagededup). Recompressed, resized or slightly retouched copies differ in a few bits.
"""

from __future__ import annotations

import numpy as np

SIDE, LOW = 32, 8
FLAT = 0
"""The hash of an image without contrast."""
CONTRAST = 2.0
"""Least standard deviation of the grey levels, 0 to 255, that makes a picture."""


def perceptual_hash(data: bytes) -> int:
    """64 bits of an encoded image; BadSample if it cannot be decoded."""
    from PIL import Image

    from orchestrator.data.preprocess import composite, load

    image = load(data).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    red, green, blue = composite([image], [(255, 255, 255)])[0].astype(np.float64)
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    if grey.std() < CONTRAST:
        return FLAT
    low = (TRANSFORM @ grey @ TRANSFORM.T).ravel()
    bits = low > np.median(low[1:])
    return int(np.packbits(bits).view(">u8")[0])


def _transform() -> np.ndarray:
    """The lowest `LOW` rows of the discrete cosine transform (type II) of `SIDE` values."""
    frequency, place = np.meshgrid(np.arange(LOW), np.arange(SIDE), indexing="ij")
    return np.cos(np.pi * frequency * (2 * place + 1) / (2 * SIDE))


TRANSFORM = _transform()


def distances(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """In how many bits hashes [n] differ from others [m] or [n]: uint8, broadcast."""
    return np.bitwise_count(one ^ others)
