"""Training augmentation: a decoded image and eight random numbers to a view of it.

The crop is cut out and scaled in one bicubic, antialiased resize; transparent pixels are resized premultiplied (so no
colour bleeds in from under them) and laid on the background last (`preprocess.composite`), which makes it an
augmentation of its own. JPEG photographs go another way from the same draws (data/jpeg.py). All randomness comes in as
numbers (data/draws.py): the functions are pure. No torch here.
`TRANSFORMS_VERSION` covers this file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from orchestrator.recipe.schema import Config

if TYPE_CHECKING:
    from PIL.Image import Image

Positive = Annotated[float, Field(gt=0)]


class Augment(Config):
    """What is done to images in training."""

    scale: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2, max_length=2)] = [0.9, 1.0]
    """Smallest and largest share of the image's area that a crop keeps (CLIP: 0.9 to 1)."""
    ratio: Annotated[list[Positive], Field(min_length=2, max_length=2)] = [0.75, 1.3333333333333333]
    """Smallest and largest width over height of a crop, before it is scaled to the square; 1 and 1 keep shapes."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability of mirroring left and right. Captions that say left or right become wrong by it."""
    background: Literal["white", "random"] = "white"
    """What lies behind transparent pixels: white, or a random colour for each view."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} is written [smallest, largest]; found [{low}, {high}]")
        return self


@dataclass(frozen=True, slots=True)
class View:
    """What was drawn for one view of an image: the crop (left, top, right, bottom) in pixels, whether it is mirrored,
    and the colour to lay it on."""

    box: tuple[float, float, float, float]
    mirrored: bool
    background: tuple[int, int, int]


def draw(width: int, height: int, config: Augment, draws: Sequence[float]) -> View:
    """The view of an image of this size that eight uniforms in [0, 1) stand for: area, ratio, x, y, flip, and the
    background's red, green, blue.

    A crop that would stick out of the image is narrowed to it (torchvision draws again instead).
    """
    area, ratio, x, y, flip, *colour = draws
    share = config.scale[0] + area * (config.scale[1] - config.scale[0])
    low, high = (math.log(r) for r in config.ratio)
    shape = math.exp(low + ratio * (high - low))
    crop_width = min(width, math.sqrt(share * width * height * shape))
    crop_height = min(height, math.sqrt(share * width * height / shape))
    left, top = x * (width - crop_width), y * (height - crop_height)
    box = (left, top, min(width, left + crop_width), min(height, top + crop_height))
    red, green, blue = (255, 255, 255) if config.background == "white" else (int(256 * c) for c in colour)
    return View(box, flip < config.flip, (red, green, blue))


def smallest_crop(width: int, height: int, config: Augment) -> tuple[float, float]:
    """The least width, and the least height, that `draw` may give a crop of an image of this size."""
    area = config.scale[0] * width * height
    narrow, wide = config.ratio
    return min(width, math.sqrt(area * narrow)), min(height, math.sqrt(area / wide))


def augment(image: Image, size: int, config: Augment, draws: Sequence[float]) -> tuple[Image, tuple[int, int, int]]:
    """One view (`draw`) of an image as loaded by `preprocess.load`: size x size, its mode kept, and its background."""
    from PIL import Image as pil

    view = draw(image.width, image.height, config, draws)
    shown = image.resize((size, size), pil.Resampling.BICUBIC, box=view.box)
    if view.mirrored:
        shown = shown.transpose(pil.Transpose.FLIP_LEFT_RIGHT)
    return shown, view.background
