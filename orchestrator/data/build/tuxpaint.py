"""Tux Paint's stamps: 950 photographs and drawings with a sentence about each, in 78 languages.

The sentences were written and translated by people, with the noise that brings: riddles in place of descriptions,
captions that many pictures share, translations of something else. English is the primary caption, the json has every
language. The folder is `category` and `subcategory`; `concept` is the stamp, which has one picture.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.data.build import Builder
from orchestrator.data.build.archives import Archive, unpack
from orchestrator.data.build.captions import language
from orchestrator.data.build.icons import rasterise, to_webp
from orchestrator.data.build.notice import notice
from orchestrator.data.build.processes import WORK
from orchestrator.data.build.shards import shuffled, to_json, write_shards

SVG_SIDE = 256
"""Longer side in pixels of what is a drawing in the package."""
SEED = 0
"""Of the order of samples."""
ARCHIVE = Archive(
    "debian",
    "tuxpaint-stamps-default",
    "2022.06.04-1",
    "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    "GPL-2.0-or-later",
    "2002-2022 by Bill Kendrick <bill@newbreedsoftware.com> and others",
    "https://tuxpaint.org/stamps",
)
TRANSLATION = re.compile(r"([\w@]+)\.utf8=(.*)")


def texts(document: str) -> dict[str, str]:
    """Language -> caption, from a stamp's text file: English in its first line, then `locale.utf8=caption` lines."""
    first, *lines = document.splitlines()
    found = {"en": first.strip()}
    for line in lines:
        if (match := TRANSLATION.fullmatch(line)) and match[2].strip():
            found[language(match[1])] = match[2].strip()
    return found


def picture(stamp: Path) -> tuple[str, bytes]:
    """Suffix and bytes of a stamp's picture: its PNG as it is, or its drawing as WebP."""
    if (png := stamp.with_suffix(".png")).is_file():
        return "png", png.read_bytes()
    svg = stamp.with_suffix(".svg").read_text(encoding="utf-8")
    width, height = rasterise(svg).size
    return "webp", to_webp(rasterise(svg, width=SVG_SIDE) if width >= height else rasterise(svg, height=SVG_SIDE))


def write(folder: Path, files: Mapping[str, Path], say: Callable[[str], None]) -> dict[str, Any]:
    """Write the set (`Builder.write`)."""
    root = unpack(files["stamps"], folder / WORK / "stamps") / "usr/share/tuxpaint/stamps"
    found = {
        path.relative_to(root).with_suffix("").as_posix(): texts(path.read_text(encoding="utf-8"))
        for path in root.rglob("*.txt")
        if any(path.with_suffix(suffix).is_file() for suffix in (".png", ".svg"))
    }
    say(f"tuxpaint: {len(found):,} stamps")
    samples = (sample(root / name, name, found[name]) for name in shuffled(found, SEED))
    shards = write_shards(folder, "tuxpaint", samples, len(found), 1000)
    changes = f"drawings rasterised to {SVG_SIDE} pixels and stored as lossless WebP; sounds left out."
    (folder / "NOTICE").write_text(notice("tuxpaint", [ARCHIVE], changes), encoding="utf-8")
    languages = Counter(language for said in found.values() for language in said)
    return {"samples": len(found), "languages": dict(sorted(languages.items())), "shards": shards}


def sample(stamp: Path, name: str, said: Mapping[str, str]) -> dict[str, bytes]:
    """The sample of one stamp: its path without suffix, that below the root of the stamps, its captions."""
    suffix, image = picture(stamp)
    category, _, subcategory = name.rpartition("/")[0].partition("/")
    record = {
        "concept": name.replace("/", "."),  # names of files come back from folder to folder
        "category": category,
        **({"subcategory": subcategory} if subcategory else {}),
        "lang": "en",
        "captions": {language: text for language, text in said.items() if language != "en"},
        "source": {
            "package": ARCHIVE.package,
            "version": ARCHIVE.version,
            "path": name,
            "licence": ARCHIVE.licence,
        },
        "sha256": hashlib.sha256(image).hexdigest(),
    }
    return {suffix: image, "txt": said["en"].encode(), "json": to_json(record)}


TUXPAINT = Builder(
    name="tuxpaint",
    description="950 stamps, photographs and drawings, with a sentence about each in 78 languages.",
    licence=ARCHIVE.licence,
    archives={"stamps": ARCHIVE},
    write=write,
)
