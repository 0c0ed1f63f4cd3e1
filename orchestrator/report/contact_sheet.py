"""A contact sheet: samples of a data set with their captions, as one PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from orchestrator.data.dataset import Dataset
from orchestrator.data.pictures import open_picture
from orchestrator.evaluation.picture import GREY, INK, fitted, font

SIDE, GAP, EDGE = 128, 16, 24
"""Pixels of a picture's side, between pictures, and around them all."""
LINES = 2
"""Lines of a caption."""


def write(dataset: Dataset, path: Path, columns: int = 8, rows: int = 4) -> None:
    """Write samples at even distances in the order of the shards, each with its caption and split."""
    from PIL import Image, ImageDraw

    number = min(columns * rows, len(dataset))
    shown = dataset.take(np.linspace(0, len(dataset) - 1, number).astype(np.int64))
    cell = SIDE + LINES * 15 + 22
    lines = -(-number // columns)
    size = (2 * EDGE + columns * (SIDE + GAP) - GAP, 2 * EDGE + 40 + lines * (cell + GAP))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    title = f"{dataset.name}: {number} of {len(dataset):,} samples"
    pen.text((EDGE, EDGE), title, INK, font(17, bold=True))
    tags = shown.column("split").tolist() if "split" in shown.columns else [""] * number
    for place, (sample, tag) in enumerate(zip(shown.read(range(number)), tags)):
        x = EDGE + place % columns * (SIDE + GAP)
        y = EDGE + 40 + place // columns * (cell + GAP)
        if (thumb := _thumb(sample.image)) is None:
            pen.text((x, y + SIDE // 2), "cannot be decoded", GREY, font(12))
        else:
            sheet.paste(thumb, (x + (SIDE - thumb.width) // 2, y + (SIDE - thumb.height) // 2))
        for line, text in enumerate(_lines(pen, sample.captions[0].text)):
            pen.text((x, y + SIDE + 6 + 15 * line), text, INK, font(12))
        pen.text((x, y + SIDE + 8 + 15 * LINES), str(tag or ""), GREY, font(10))
    sheet.save(path, optimize=True)


def _thumb(encoded: bytes):
    """A picture on white, made small; None if it cannot be decoded."""
    from PIL import Image

    try:
        with open_picture(encoded) as image:
            image.draft("RGB", (SIDE, SIDE))
            made = image.convert("RGBA")
        made.thumbnail((SIDE, SIDE))
    except Exception:  # a broken file: whatever its decoder raises
        return None
    laid = Image.new("RGB", made.size, "white")
    laid.paste(made, mask=made.getchannel("A"))
    return laid


def _lines(pen, text: str) -> list[str]:
    """A caption in at most `LINES` lines, the last cut with an ellipsis."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if len(lines) == LINES or not lines[-1] or pen.textlength(longer, font(12)) <= SIDE:
            lines[-1] = longer
        else:
            lines.append(word)
    return [fitted(pen, line, font(12), SIDE) for line in lines]
