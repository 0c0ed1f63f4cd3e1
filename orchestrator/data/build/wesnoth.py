"""Battle for Wesnoth's units: a sprite and a painted portrait of each, with a paragraph about it, in 58 languages.

Captions are long (70 words in the middle, 340 at most), so text towers really cut them off; the unit's name is the
short caption. `concept` is the unit, `style` is sprite or portrait, `category` is its race. English is in the samples,
every language in `captions.parquet`.

Units are described in WML, the game's own format, of which `units` reads as much as is needed.
"""

from __future__ import annotations

import gettext
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.data.build import Builder, captions
from orchestrator.data.build.archives import Archive, unpack
from orchestrator.data.build.cldr import slug
from orchestrator.data.build.notice import notice
from orchestrator.data.build.processes import WORK
from orchestrator.data.build.shards import shuffled, to_json, write_shards

SEED = 0
"""Of the order of samples."""
ARCHIVE = Archive(
    "debian",
    "wesnoth-1.16-data",
    "1:1.16.9-1",
    "1012b964bd412a6770685e3324ae3b61e176caff7846192d1ee63d55cd621e26",
    "GPL-2.0-or-later AND CC-BY-SA-4.0",
    "2003-2023 by David White <dave@whitevine.net> and others",
    "https://www.wesnoth.org",
)
PICTURES = {"sprite": "image", "portrait": "profile"}
"""Style -> the attribute of a unit that names the picture."""
TOKEN = re.compile(
    r"^[ \t]*\[(?P<end>/?)\+?(?P<tag>\w+)\]"
    r'|^[ \t]*(?P<key>\w+)[ \t]*=[ \t]*_?[ \t]*(?:"(?P<quoted>(?:[^"]|"")*)"|(?P<bare>[^"\n#]*))'
    r"|^#textdomain[ \t]+(?P<domain>\S+)",
    re.MULTILINE,
)
MACRO = re.compile(r"^#define (\w+)\n(.*)\n\s*#enddef", re.MULTILINE)


def units(document: str) -> Iterator[dict[str, str]]:
    """The units that a WML file defines: their own attributes, and `textdomain`, under which they are translated.

    Names that the file defines itself, `{PATH}`, are replaced by what they stand for.
    """
    macros = {match[1]: match[2].strip() for match in MACRO.finditer(document)}
    domain, tags, unit = "wesnoth", list[str](), dict[str, str]()
    for token in TOKEN.finditer(document):
        if token["domain"]:
            domain = token["domain"]
        elif token["tag"] and not token["end"]:
            tags.append(token["tag"])
            if tags == ["unit_type"]:
                unit = {"textdomain": domain}
        elif token["tag"]:
            if tags == ["unit_type"]:
                yield unit
            del tags[-1:]
        elif tags == ["unit_type"]:
            value = token["bare"].strip() if token["quoted"] is None else token["quoted"].replace('""', '"')
            unit.setdefault(token["key"], re.sub(r"\{(\w+)\}", lambda name: macros.get(name[1], name[0]), value))


def find(picture: str, roots: Sequence[Path]) -> Path | None:
    """A picture by its name in WML, without what the game would do to it (`~CROP(...)`), or None."""
    name = picture.split("~")[0]
    return next((root / name for root in roots if name and (root / name).is_file()), None)


def english_name(unit: Mapping[str, str]) -> str:
    """A unit's name, without the hint for translators before it (`female^Elvish Druid`)."""
    return unit["name"].rpartition("^")[2]


def translations(locale: Path, described: Mapping[str, Mapping[str, str]]) -> dict[str, captions.Annotation]:
    """Concept -> what one locale's folder says of it, for the descriptions that are translated."""
    catalogues: dict[str, gettext.NullTranslations] = {}
    found = {}
    for concept, unit in described.items():
        domain = unit["textdomain"]
        if domain not in catalogues:
            catalogues[domain] = _catalogue(locale / "LC_MESSAGES" / f"{domain}.mo")
        translate = catalogues[domain].gettext
        if (description := translate(unit["description"])) != unit["description"]:
            name = translate(unit["name"]).rpartition("^")[2]
            found[concept] = captions.Annotation(name, description=description)
    return found


def _catalogue(file: Path) -> gettext.NullTranslations:
    if not file.is_file():
        return gettext.NullTranslations()
    with file.open("rb") as stream:  # gettext.translation would fall back from pt_BR to pt
        return gettext.GNUTranslations(stream)


def write(folder: Path, files: Mapping[str, Path], say: Callable[[str], None]) -> dict[str, Any]:
    """Write the set (`Builder.write`)."""
    game = unpack(files["game"], folder / WORK / "game") / "usr/share/games/wesnoth/1.16"
    roots = [game / "data/core/images", *sorted(game.glob("data/campaigns/*/images"))]
    described = {
        slug(unit["id"]): unit
        for file in sorted(game.glob("data/**/units/**/*.cfg"))
        for unit in units(file.read_text(encoding="utf-8"))
        if unit.get("description")
    }
    pictures = {
        f"{concept}/{style}": (concept, style, path)
        for concept, unit in described.items()
        for style, attribute in PICTURES.items()
        if (path := find(unit.get(attribute, ""), roots))
    }
    say(f"wesnoth: {len(pictures)} pictures of {len(described)} units")
    samples = [
        _sample(described[concept], concept, style, path, path.relative_to(game).as_posix())
        for concept, style, path in (pictures[key] for key in shuffled(pictures, SEED))
    ]
    shards = write_shards(folder, "wesnoth", samples, len(samples), 1000)
    seen = {concept: described[concept] for concept in sorted({concept for concept, _, _ in pictures.values()})}
    english = {c: captions.Annotation(english_name(u), description=u["description"]) for c, u in seen.items()}
    locales = {captions.language(path.name): translations(path, seen) for path in (game / "locale").iterdir()}
    locales = {"en": english, **{language: locales[language] for language in sorted(locales)}}
    table = folder / captions.NAME
    rows_of = captions.write_captions(table, {concept: concept for concept in seen}, locales)
    (folder / "NOTICE").write_text(notice("wesnoth", [ARCHIVE], "pictures and texts of units chosen."), "utf-8")
    styles = Counter(style for _, style, _ in pictures.values())
    return {
        "samples": len(samples),
        "dropped": {"no picture": len(described) - len(seen)},
        "concepts": len(seen),
        "styles": dict(sorted(styles.items())),
        "shards": shards,
        **captions.facts(table, rows_of),
    }


def _sample(unit: Mapping[str, str], concept: str, style: str, picture: Path, path: str) -> dict[str, bytes]:
    image = picture.read_bytes()
    record = {
        "concept": concept,
        "style": style,
        **({"category": unit["race"]} if "race" in unit else {}),
        "lang": "en",
        "captions": {"short": english_name(unit)},
        "source": {
            "package": ARCHIVE.package,
            "version": ARCHIVE.version,
            "path": path,
            "licence": ARCHIVE.licence,
        },
        "sha256": hashlib.sha256(image).hexdigest(),
    }
    return {"png": image, "txt": unit["description"].encode(), "json": to_json(record)}


WESNOTH = Builder(
    name="wesnoth",
    description="Sprites and portraits of 280 fantasy units, with a paragraph about each in up to 58 languages.",
    licence=ARCHIVE.licence,
    archives={"game": ARCHIVE},
    write=write,
)
