"""Samples' images as small data URIs, so that a page needs no other file."""

from __future__ import annotations

import base64
import io

from orchestrator.data.pictures import open_picture

SIDE = 112
"""Pixels of the longer side: sharp at 56 on a dense screen."""


def small(encoded: bytes, side: int = SIDE) -> str:
    """An encoded image, made smaller, as a WebP data URI; "" for one that cannot be decoded."""
    try:
        with open_picture(encoded) as image:
            image.draft("RGB", (side, side))
            clear = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
            made = image.convert("RGBA" if clear else "RGB")
        made.thumbnail((side, side))
        out = io.BytesIO()
        made.save(out, "webp", quality=80)
    except Exception:  # a broken or hostile file: whatever its decoder raises, the page shows that it has no picture
        return ""
    return uri(out.getvalue(), "image/webp")


def uri(data: bytes, media: str) -> str:
    """Bytes as an address."""
    return f"data:{media};base64,{base64.b64encode(data).decode()}"
