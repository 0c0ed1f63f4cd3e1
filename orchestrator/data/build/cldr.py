"""Names and keywords of emoji in many languages, from Unicode's CLDR annotations.

CLDR describes a character sequence ("🐱", a flag, a keycap) in two packages: base characters, and derived sequences
(skin tones, flags). Variation selectors (U+FE0F) are written in some places and not in others: they are stripped
from every key.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

from orchestrator.data.build.archives import members
from orchestrator.data.build.captions import Annotation

VARIATION_SELECTOR = "\ufe0f"
SKIN_TONES = frozenset(map(chr, range(0x1F3FB, 0x1F400)))


def strip_variation(text: str) -> str:
    """Without U+FE0F."""
    return text.replace(VARIATION_SELECTOR, "")


def from_hex(codes: str) -> str:
    """`1f469-200d-1f680` to characters, without U+FE0F."""
    return strip_variation("".join(chr(int(code, 16)) for code in codes.split("-")))


def to_hex(char: str) -> str:
    """Characters to `1f469-200d-1f680`."""
    return "-".join(f"{ord(part):04x}" for part in char)


def slug(name: str) -> str:
    """English name to icon name: ASCII, lower case, no apostrophes and ampersands, hyphens for everything else."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"['&]", "", ascii_name)).strip("-")


def has_skin_tone(char: str) -> bool:
    """Whether a skin-tone modifier is in the sequence."""
    return not SKIN_TONES.isdisjoint(char)


def concept_ids(names: Mapping[str, str]) -> dict[str, str]:
    """Character sequence -> concept id: the slug of its English name, and code points where two share a slug."""
    slugs = {char: slug(name) for char, name in names.items()}
    uses = Counter(slugs.values())
    return {char: text if uses[text] == 1 else f"{text}-{to_hex(char)}" for char, text in slugs.items()}


def parse(document: bytes, key: str) -> dict[str, Annotation]:
    """One annotation file: character sequence -> annotation, nothing for the locales that only inherit.

    Sequences that have keywords but no name are left out.
    """
    entries = json.loads(document)[key].get("annotations", {})
    return {
        strip_variation(char): Annotation(entry["tts"][0], tuple(entry.get("default", ())))
        for char, entry in entries.items()
        if entry.get("tts")
    }


def read(base: Path, derived: Path, languages: Collection[str] | None = None) -> dict[str, dict[str, Annotation]]:
    """Locale -> character sequence -> annotation, from the two packages; locales without data are left out.

    `languages`: only these locales; all that have data by default.
    """
    wanted = "[^/]+" if languages is None else "|".join(map(re.escape, languages))
    locales: dict[str, dict[str, Annotation]] = {}
    for file, key in ((derived, "annotationsDerived"), (base, "annotations")):  # a base entry wins over a derived one
        for name, data in members(file, rf"package/{key}/({wanted})/annotations\.json"):
            locales.setdefault(name.split("/")[2], {}).update(parse(data, key))
    return {locale: locales[locale] for locale in sorted(locales) if locales[locale]}
