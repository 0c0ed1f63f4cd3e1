"""A picture of retrieval: captions, the drawing each belongs to, and the five that each model finds for it.

`describe` gives the same as sample ids, from which a page shows the samples themselves.

The captions are drawn at random from one gallery, so that up to four are found by some model and the others by none;
the picture says so, for it is a look at the models, not a measurement. Its bytes depend on library versions: never a
declared file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.data.dataset import Dataset
from orchestrator.data.draws import integer
from orchestrator.data.preprocess import Preprocess
from orchestrator.evaluation import metrics
from orchestrator.evaluation.encode import Encoded
from orchestrator.evaluation.protocol import Gallery

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

TOP = 5
CAPTIONS = 6
FOUND = 4
THUMB, GAP, MARGIN = 60, 6, 20
TEXT_WIDTH = 190
BLOCK = TOP * (THUMB + GAP) - GAP
LEFT, TOP_EDGE, ROW = MARGIN + TEXT_WIDTH + 2 * MARGIN + THUMB, 92, THUMB + 18
INK, GREY, LINE, RIGHT = (30, 34, 40), (110, 117, 126), (226, 229, 233), (22, 163, 74)


@dataclass(frozen=True)
class Found:
    """One model's answers: `top` [M, <=TOP] are places in the gallery, for each of its texts."""

    name: str
    top: np.ndarray


def find(name: str, gallery: Gallery, encoded: Encoded) -> Found:
    """The images a model finds for each text of a gallery."""
    chunks = gallery.chunks(encoded, of_texts=True)
    return Found(name, np.concatenate([metrics.best(scores, TOP) for _, scores in chunks]))


def draw(gallery: Gallery, found: Sequence[Found], dataset: Dataset, seed: int, path: Path) -> None:
    """Write the picture as PNG."""
    from PIL import Image, ImageDraw

    chosen = _choose(gallery, found, dataset, seed)
    thumbs = _thumbs(gallery, found, dataset, chosen)
    size = (LEFT + len(found) * (BLOCK + 2 * MARGIN), TOP_EDGE + len(chosen) * ROW + 44)
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    _head(pen, gallery, found)
    for line, text in enumerate(chosen):
        y = TOP_EDGE + line * ROW
        pen.line((MARGIN, y - 9, image.width - MARGIN, y - 9), LINE)
        _wrapped(pen, (MARGIN, y), gallery.texts[text])
        own = int(gallery.owner[text])
        image.paste(thumbs[own], (LEFT - MARGIN - THUMB, y))
        for number, model in enumerate(found):
            for place, candidate in enumerate(model.top[text].tolist()):
                x = _left(number) + place * (THUMB + GAP)
                image.paste(thumbs[candidate], (x, y))
                if candidate == own:
                    box = (x - 3, y - 3, x + THUMB + 2, y + THUMB + 2)
                    pen.rounded_rectangle(box, radius=4, outline=RIGHT, width=3)
    num_found = sum(_is_found(gallery, found, text) for text in chosen)
    note = f"Drawn at random: {num_found} captions that some model gets right within {TOP}"
    note += f", {len(chosen) - num_found} that none does." if num_found < len(chosen) else "."
    pen.text((MARGIN, image.height - 32), f"{note}  Framed: right.", GREY, font(12))
    image.save(path, optimize=True)


def describe(gallery: Gallery, found: Sequence[Found], dataset: Dataset, seed: int) -> dict[str, Any]:
    """What `draw` shows, as JSON values: captions, the id of each one's sample, and by model the ids it finds."""
    uids = dataset.uids

    def uid(place: int) -> str:
        return uids[int(gallery.rows[place])]

    captions = [
        {
            "text": gallery.texts[text],
            "uid": uid(int(gallery.owner[text])),
            "found": [[uid(place) for place in model.top[text].tolist()] for model in found],
        }
        for text in _choose(gallery, found, dataset, seed)
    ]
    place = {"split": gallery.split, "style": gallery.style, "size": len(gallery.rows), "top": TOP}
    return {**place, "right_within": [_right_within(gallery, model) for model in found], "captions": captions}


def _right_within(gallery: Gallery, model: Found) -> float:
    return float((model.top == gallery.owner[:, None]).any(axis=1).mean())


def _head(pen: ImageDraw.ImageDraw, gallery: Gallery, found: Sequence[Found]) -> None:
    """Title and column heads: the models, with how often they are right in the whole gallery."""
    place = f"{gallery.split}, {gallery.style}" if gallery.style else gallery.split
    pen.text((MARGIN, 16), f"Text to image among {len(gallery.rows):,} ({place})", INK, font(17, bold=True))
    pen.text((MARGIN, 64), "caption", GREY, font(12))
    pen.text((LEFT - MARGIN - THUMB, 64), "its image", GREY, font(12))
    for number, model in enumerate(found):
        share = _right_within(gallery, model)
        heavy = font(15, bold=True)
        pen.text((_left(number), 44), fitted(pen, model.name, heavy, BLOCK), INK, heavy)
        pen.text((_left(number), 64), f"right within {TOP}: {100 * share:.1f}%", GREY, font(12))


def _left(number: int) -> int:
    """Left edge of a model's block of images."""
    return LEFT + number * (BLOCK + 2 * MARGIN) + MARGIN


def _choose(gallery: Gallery, found: Sequence[Found], dataset: Dataset, seed: int) -> list[int]:
    """Texts to show: the first in a random order, up to FOUND of them found by some model, CAPTIONS in all."""
    uids = [dataset.uids[int(gallery.rows[owner])] for owner in gallery.owner]
    order = sorted(range(len(uids)), key=lambda text: (integer(seed, "picture", uids[text]), text))
    hits = [text for text in order if _is_found(gallery, found, text)]
    misses = [text for text in order if not _is_found(gallery, found, text)]
    shown = hits[: max(FOUND, CAPTIONS - len(misses))]
    return shown + misses[: CAPTIONS - len(shown)]


def _is_found(gallery: Gallery, found: Sequence[Found], text: int) -> bool:
    return any(gallery.owner[text] in model.top[text] for model in found)


def _thumbs(
    gallery: Gallery, found: Sequence[Found], dataset: Dataset, chosen: Sequence[int]
) -> dict[int, Image.Image]:
    from PIL import Image

    needed = {int(gallery.owner[text]) for text in chosen}
    needed |= {int(candidate) for model in found for text in chosen for candidate in model.top[text]}
    places = sorted(needed)
    samples = dataset.read([int(gallery.rows[place]) for place in places])
    decode = Preprocess(image_size=THUMB).decode
    return {
        place: Image.fromarray(np.ascontiguousarray(decode(sample.image).transpose(1, 2, 0)))
        for place, sample in zip(places, samples)
    }


def _wrapped(pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str) -> None:
    """A caption in at most three lines, the last cut with an ellipsis."""
    plain, lines = font(14), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if len(lines) == 3 or not lines[-1] or pen.textlength(longer, plain) <= TEXT_WIDTH:
            lines[-1] = longer
        else:
            lines.append(word)
    pen.multiline_text(at, "\n".join(fitted(pen, line, plain, TEXT_WIDTH) for line in lines), INK, plain, spacing=4)


def fitted(pen: ImageDraw.ImageDraw, text: str, letters: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels."""
    if pen.textlength(text, letters) <= width:
        return text
    kept = next(n for n in range(len(text), -1, -1) if pen.textlength(f"{text[:n]}…", letters) <= width)
    return f"{text[:kept]}…"


def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib carries and which has far more scripts than Pillow's own."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
