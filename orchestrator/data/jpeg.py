"""JPEG photographs, the fast way: decoded no larger than a crop needs, then cut and scaled by torch's integer kernel.

libjpeg can leave out the high frequencies that scaling down would remove anyway (`Image.draft`: halves, quarters,
eighths). How far it may go follows from the picture's size, the smallest crop that the augmentation may draw and the
target, never from what is drawn or cached: one decoding serves all views. `MARGIN` pixels for each of the target's are
left to the resampling; the result is then as near to the exact one as bilinear scaling is (37 to 48 dB
on photographs). The kernel is Pillow's antialiased bicubic in 16-bit weights (at most two levels away), three
to four times as fast; the crop is rounded to whole pixels, as torchvision's is. `TRANSFORMS_VERSION` covers this file.

Pillow and simplejpeg both wrap libjpeg-turbo and give the same pixels; simplejpeg takes half to three quarters of the
time. Whatever it hesitates at (other colours than RGB and grey, a file with anything odd) Pillow decodes, or refuses.

Evaluation goes the exact way, as open_clip does (`preprocess.py`); so do all other formats, which may have alpha.
"""

from __future__ import annotations

import math
from io import BytesIO
from types import ModuleType
from typing import Literal

import numpy as np
import torch
from PIL import Image

from orchestrator.data.preprocess import decoding
from orchestrator.data.transforms import Augment, View, smallest_crop

try:
    import simplejpeg
except ImportError:  # a machine may lack it
    simplejpeg = None

Decoder = Literal["auto", "pillow"]
"""`auto`: simplejpeg where it is installed."""
START = b"\xff\xd8\xff"
"""What a JPEG file begins with."""
MARGIN = 2
"""Decoded pixels for each pixel of the target, at least, before a picture may be decoded at reduced scale."""


def decode(data: bytes, size: int, config: Augment, decoder: Decoder = "auto") -> np.ndarray:
    """A JPEG to [H, W, 3] uint8, reduced as far as views of `size` pixels allow. BadSample if undecodable."""
    pixels = None if decoder == "pillow" or simplejpeg is None else _by_simplejpeg(simplejpeg, data, size, config)
    if pixels is not None:
        return pixels
    with decoding():
        image = Image.open(BytesIO(data), formats=["JPEG"])
        image.draft(None, _enough(*image.size, size, config))
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        return np.frombuffer(rgb.tobytes(), np.uint8).reshape(rgb.height, rgb.width, 3)


def _enough(width: int, height: int, size: int, config: Augment) -> tuple[int, int]:
    """Width and height of a picture below which no view of `size` pixels may be made of it."""
    least = smallest_crop(width, height, config)
    return math.ceil(MARGIN * size * width / least[0]), math.ceil(MARGIN * size * height / least[1])


def _by_simplejpeg(library: ModuleType, data: bytes, size: int, config: Augment) -> np.ndarray | None:
    """The pixels, at the scale that Pillow would choose; None if Pillow has to look at it."""
    try:
        height, width, colours, _ = library.decode_jpeg_header(data)
        if colours not in ("YCbCr", "Gray") or width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
            return None
        enough = _enough(width, height, size, config)
        fits = min(width // enough[0], height // enough[1])
        scale = next(scale for scale in (8, 4, 2, 1) if scale <= max(fits, 1))
        least = {"min_height": -(-height // scale), "min_width": -(-width // scale)} if scale > 1 else {}
        return library.decode_jpeg(data, "RGB", **least)
    except (ValueError, RuntimeError):
        return None


def show(picture: np.ndarray, view: View, out: np.ndarray) -> None:
    """Write one view of a decoded photograph [H, W, 3] into `out` [3, size, size] uint8."""
    height, width, _ = picture.shape
    left, top, right, bottom = map(round, view.box)
    left, top = min(left, width - 1), min(top, height - 1)
    crop = np.array(picture[top : max(bottom, top + 1), left : max(right, left + 1)])
    # Copies are numpy's, and the crop is dense: where torch copies, it wakes threads of its own for each of ours.
    planes = torch.from_numpy(crop).permute(2, 0, 1)[None]
    if planes.shape[2:] != out.shape[1:]:
        planes = torch.nn.functional.interpolate(planes, list(out.shape[1:]), mode="bicubic", antialias=True)
    pixels = planes[0].numpy()
    out[:] = pixels[..., ::-1] if view.mirrored else pixels
