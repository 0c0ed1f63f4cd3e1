"""Iconify: 390,000 icons of 243 icon sets, captioned by their names. Scale, a long tail, and many near-duplicates.

A caption is the icon's name in words, without those that say how it is drawn (`account-outline-rounded`, `home-24px`):
the set's own list of variants, and a few that never name a thing. So the same caption comes back from set to set, and
`concept` (the caption with hyphens), `style` (the icon set) and `category` (the set's, where it has any) label it.
Other names that a set gives an icon are its keywords. Icons without a colour of their own are drawn in dark grey.

Licences differ by icon set: `source.licence` in the json has each sample's, NOTICE has all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.data.build import Builder
from orchestrator.data.build.archives import Archive, members
from orchestrator.data.build.icons import IconSet, rasterise, to_webp
from orchestrator.data.build.notice import Work, notice
from orchestrator.data.build.processes import WORK, draw_shards
from orchestrator.data.build.shards import shuffled, to_json

IMAGE_SIZE = 64
"""Side in pixels."""
SEED = 0
"""Of the order of samples."""
LARGEST = 3000
"""Samples a shard."""
STYLE_WORDS = frozenset(
    {"baseline", "bold", "duotone", "fill", "filled", "linear", "outline", "outlined", "regular", "rounded"}
    | {"sharp", "solid", "thin", "twotone"}
)
"""Of a name, wherever they stand: what they say is how an icon is drawn."""
LICENCE = (
    "Apache-2.0 AND BSD-3-Clause AND CC-BY-3.0 AND CC-BY-4.0 AND CC-BY-NC-4.0 AND CC-BY-NC-SA-4.0 AND CC-BY-SA-3.0 "
    "AND CC-BY-SA-4.0 AND CC0-1.0 AND GPL-2.0-only AND GPL-2.0-or-later AND GPL-3.0 AND GPL-3.0-or-later AND ISC "
    "AND MIT AND MPL-2.0 AND OFL-1.1 AND Unlicense"
)
ARCHIVE = Archive(
    "npm",
    "@iconify/json",
    "2.2.535",
    "1a545f86fa224d6531d8fb101dcbe83aac2b28689a21cbed6fc68318a5af4d91",
    LICENCE,
    "the authors of the icon sets below",
    "https://github.com/iconify/icon-sets",
)
CHANGES = (
    f"drawings rasterised to {IMAGE_SIZE}x{IMAGE_SIZE} pixels and stored as lossless WebP; captions made from their "
    "names; keywords and categories joined to them."
)


def caption(icon: str, suffixes: Mapping[str, str], prefixes: Mapping[str, str]) -> str:
    """The words of an icon's name less a suffix and a prefix that the set declares as variants, and `STYLE_WORDS`.

    A name of nothing else keeps its words.
    """
    for suffix in sorted(suffixes, key=len, reverse=True):
        if suffix and icon.endswith(f"-{suffix}"):
            icon = icon.removesuffix(f"-{suffix}")
            break
    for prefix in sorted(prefixes, key=len, reverse=True):
        if prefix and icon.startswith(f"{prefix}-"):
            icon = icon.removeprefix(f"{prefix}-")
            break
    words = [word for word in icon.split("-") if word]
    return " ".join([word for word in words if word not in STYLE_WORDS] or words)


def rows(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(set/icon, what its sample is drawn from) of one icon set's file, in the file's order."""
    style = document["prefix"]
    icons = IconSet.parse(style, document)
    words = partial(caption, suffixes=document.get("suffixes", {}), prefixes=document.get("prefixes", {}))
    category: dict[str, str] = {}
    for label, names in document.get("categories", {}).items():
        for name in names:
            category.setdefault(name, label)
    synonyms: dict[str, set[str]] = {}
    for alias, entry in document.get("aliases", {}).items():
        if entry.keys() == {"parent"}:  # others are mirrored or turned: other pictures
            synonyms.setdefault(entry["parent"], set()).add(words(alias))
    for icon in icons.icons:
        text = words(icon)
        keywords = sorted(synonyms.get(icon, set()) - {text})
        record = {
            "concept": text.replace(" ", "-"),
            "style": style,
            **({"category": category[icon]} if icon in category else {}),
            "lang": "en",
            **({"captions": {"keywords": keywords}} if keywords else {}),
            "source": {
                "package": ARCHIVE.package,
                "version": ARCHIVE.version,
                "icon": f"{style}/{icon}",
                "licence": document["info"]["license"]["spdx"],
            },
        }
        yield f"{style}/{icon}", {"svg": icons.svg(icon, IMAGE_SIZE), "txt": text, "json": record}


def draw(spool: Path, place: int) -> dict[str, bytes] | str:
    """The sample of the row at a place of the spool, or why there is none."""
    with spool.open("rb") as stream:
        stream.seek(place)
        row = json.loads(stream.readline())
    try:
        image = to_webp(rasterise(row["svg"]), fast=True)
    except ValueError:
        return "cannot be drawn"
    record = {**row["json"], "sha256": hashlib.sha256(image).hexdigest()}
    return {"webp": image, "txt": row["txt"].encode(), "json": to_json(record)}


def write(folder: Path, files: Mapping[str, Path], say: Callable[[str], None]) -> dict[str, Any]:
    """Write the set (`Builder.write`): all rows go to a file on disk, which the processes draw shards from."""
    spool = folder / WORK / "rows.jsonl"
    places: dict[str, int] = {}
    works: list[Work] = []
    concepts: set[str] = set()
    with spool.open("wb") as stream:
        for _, data in members(files["icons"], r"package/json/[^/]+\.json"):
            document = json.loads(data)
            works.append(_work(document["info"], document["prefix"]))
            for key, row in rows(document):
                places[key] = stream.tell()
                concepts.add(row["json"]["concept"])
                stream.write(to_json(row) + b"\n")
    say(f"iconify: {len(places):,} icons in {len(works)} icon sets")
    order = [places[key] for key in shuffled(places, SEED)]
    drawn = draw_shards(folder, "iconify", order, partial(draw, spool), LARGEST, say)
    (folder / "NOTICE").write_text(notice("iconify", works, CHANGES), encoding="utf-8")
    return {"image_size": IMAGE_SIZE, "concepts": len(concepts), "styles": len(works), **drawn}


def _work(info: Mapping[str, Any], prefix: str) -> Work:
    url = info["author"].get("url") or info["license"].get("url") or ARCHIVE.url
    return Work(f"{info['name']} ({prefix}), from {ARCHIVE}", info["license"]["spdx"], info["author"]["name"], url)


ICONIFY = Builder(
    name="iconify",
    description="390,629 icons of 243 icon sets, 64 pixels, captioned by their names.",
    licence=LICENCE,
    archives={"icons": ARCHIVE},
    write=write,
)
