"""Icon sets: drawings of emoji as SVG bodies, which of them show what, and their pixels.

An icon is matched to a character sequence by the set's table of code points where it lists the icon, else by the
slug of the sequence's English name. Pixels are RGBA; what is fully transparent has no colour, so equal drawings
have equal pixels.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.data.build.archives import members
from orchestrator.data.build.cldr import from_hex, slug
from orchestrator.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

RENAMED: dict[str, dict[str, str]] = {"noto-v1": {"keycap-pound": "keycap: #"}}
"""Style -> icon -> English name of what it shows, where slugs mislead: "keycap: #" has that of the blank key."""


@dataclass(frozen=True)
class IconSet:
    """One drawing style.

    Attributes:
        style: its name.
        icons: icon name -> SVG body and perhaps left, top, width, height.
        chars: code points in hex -> icon name; empty where the package has none.
        left, top, width, height: of an icon that does not say.
    """

    style: str
    icons: Mapping[str, Mapping[str, Any]]
    chars: Mapping[str, str]
    left: float = 0
    top: float = 0
    width: float = 16
    height: float = 16

    @classmethod
    def read(cls, style: str, file: Path) -> IconSet:
        """From an Iconify package."""
        found = {Path(name).stem: json.loads(data) for name, data in members(file, r"package/(icons|chars)\.json")}
        return cls.parse(style, {**found["icons"], "chars": found.get("chars", {})})

    @classmethod
    def parse(cls, style: str, document: Mapping[str, Any]) -> IconSet:
        """From the whole set in one document."""
        box = {side: document[side] for side in ("left", "top", "width", "height") if side in document}
        return cls(style, document["icons"], document.get("chars", {}), **box)

    def match(self, names: Mapping[str, str]) -> dict[str, str]:
        """Icon -> character sequence, for the icons that show one of `names` (character sequence -> English name)."""
        listed: dict[str, str] = {}
        for codes, icon in sorted(self.chars.items()):
            if listed.get(icon) not in names:
                listed[icon] = from_hex(codes)
        slugs = {char: slug(name) for char, name in names.items()}
        uses = Counter(slugs.values())
        by_slug = {text: char for char, text in slugs.items() if uses[text] == 1}
        by_name = {name: char for char, name in names.items()}
        renamed = {icon: by_name[name] for icon, name in RENAMED.get(self.style, {}).items() if name in by_name}
        matched = {icon: renamed.get(icon) or listed.get(icon) or by_slug.get(icon) for icon in self.icons}
        return {icon: char for icon, char in matched.items() if char is not None and char in names}

    def svg(self, icon: str, pixels: int) -> str:
        """A whole SVG document; an oblong icon is centred in the square."""
        body = self.icons[icon]
        left, top = body.get("left", self.left), body.get("top", self.top)
        width, height = body.get("width", self.width), body.get("height", self.height)
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="#222" '
            f'viewBox="{left} {top} {width} {height}" width="{pixels}" height="{pixels}">{body["body"]}</svg>'
        )


def rasterise(svg: str, width: int | None = None, height: int | None = None) -> Image.Image:
    """SVG to RGBA with straight alpha; colour is zero where alpha is. ValueError if it is none or has no size.

    `width` or `height` in pixels, the other in proportion; by default what the drawing says, at 96 dots an inch. Text
    stays out, since this machine's fonts are not another's.
    """
    import numpy as np
    from PIL import Image

    try:
        import resvg_py
    except ImportError:
        raise UserError(
            "drawing SVG needs the Python package resvg-py, which is not installed",
            "Run `pip install resvg-py`, or install orch with its `build` extra.",
        ) from None
    png = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True, dpi=96, width=width, height=height)
    pixels = np.array(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))
    pixels[pixels[..., 3] == 0] = 0
    return Image.fromarray(pixels)


def to_webp(image: Image.Image, fast: bool = False) -> bytes:
    """Lossless WebP, alpha kept, the same pixels when decoded; `fast`: an eighth of the time, half as large again."""
    stream = io.BytesIO()
    effort = {"method": 0, "quality": 0} if fast else {"method": 6}
    image.save(stream, "WEBP", lossless=True, exact=True, **effort)
    return stream.getvalue()
