"""Pictures that strangers made: opened only as what they may be, and no larger than a worker can hold."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""Whatever the suffix says. Of Pillow's other formats some start a program to decode (EPS: Ghostscript)."""
MAX_PIXELS = 80_000_000
"""A few kilobytes may claim to be gigabytes of pixels."""


class PictureTooLarge(ValueError):
    """It has more than `MAX_PIXELS`."""


def open_picture(data: bytes) -> Image:
    """A picture, its header read and its pixels not yet; PictureTooLarge, or whatever Pillow raises on bad bytes."""
    from PIL import Image

    try:
        picture = Image.open(BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise PictureTooLarge(str(error)) from None
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise PictureTooLarge(f"{width} x {height} pixels, {MAX_PIXELS:,} at most")
    return picture
