"""Battle for Wesnoth's units: a sprite and a portrait of each, with a paragraph about it, in up to 48 languages.

Captions are long (70 words in the middle, 340 at most), so text towers really cut them off; the unit's name is the
short caption. `concept` is the unit, `style` is sprite or portrait, `category` is its race. English is the primary
caption, the json has every language.

Units are described in WML, the game's own format, of which `units` reads as much as is needed.
"""

from __future__ import annotations

import gettext
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from orchestrator.data.build import Builder
from orchestrator.data.build.archives import Archive, unpack
from orchestrator.data.build.captions import language
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
MACRO = re.compile(r"^#define (\w+)\n(.*)#enddef", re.MULTILINE)


def units(document: str) -> Iterator[dict[str, str]]:
    """The units that a WML file defines: their own attributes, and `textdomain`, under which they are translated.

    Names that the file itself defines in one line, `{PATH}`, are replaced by what they stand for.
    """
    macros: dict[str, str] = {}
    expand = partial(re.sub, r"\{(\w+)\}", lambda name: macros.get(name[1], name[0]))
    for name, body in MACRO.findall(document):
        macros[name] = expand(body.strip())
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
            unit.setdefault(token["key"], expand(value))


def find(picture: str, roots: Sequence[Path]) -> Path | None:
    """A picture by its name in WML, without what the game would do to it (`~CROP(...)`), or None."""
    name = picture.split("~")[0]
    return next((root / name for root in roots if name and (root / name).is_file()), None)


def name_of(text: str) -> str:
    """A unit's name without the hint for translators before it (`female^Elvish Druid`)."""
    return text.rpartition("^")[2]


def translations(locales: Path, unit: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Language -> description (`original`) and name (`short`) of a unit, for those that translate the description."""
    found = {}
    for locale in sorted(locales.iterdir()):
        translate = _catalogue(locale / "LC_MESSAGES" / f"{unit['textdomain']}.mo").gettext
        if (description := translate(unit["description"])) != unit["description"]:
            found[language(locale.name)] = {"original": description, "short": name_of(translate(unit["name"]))}
    return found


@cache
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
    said = {concept: translations(game / "locale", described[concept]) for concept, _, _ in pictures.values()}
    samples = (
        sample(described[concept], concept, style, path, path.relative_to(game).as_posix(), said[concept])
        for concept, style, path in (pictures[key] for key in shuffled(pictures, SEED))
    )
    shards = write_shards(folder, "wesnoth", samples, len(pictures), 1000)
    changes = "pictures and texts of units chosen, others left out."
    (folder / "NOTICE").write_text(notice("wesnoth", [ARCHIVE], changes), encoding="utf-8")
    languages = Counter(language for texts in said.values() for language in ("en", *texts))
    return {
        "samples": len(pictures),
        "dropped": {"no picture": len(described) - len(said)},
        "concepts": len(said),
        "styles": dict(sorted(Counter(style for _, style, _ in pictures.values()).items())),
        "languages": dict(sorted(languages.items())),
        "shards": shards,
    }


def sample(
    unit: Mapping[str, str], concept: str, style: str, picture: Path, path: str, said: Mapping[str, Mapping[str, str]]
) -> dict[str, bytes]:
    """The sample of one picture; `path` is its place in the game, `said` the unit's translations."""
    image = picture.read_bytes()
    record = {
        "concept": concept,
        "style": style,
        **({"category": unit["race"]} if "race" in unit else {}),
        "lang": "en",
        "captions": {"short": name_of(unit["name"]), **said},
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
    description="Sprites and portraits of 278 fantasy units, with a paragraph about each in up to 48 languages.",
    licence=ARCHIVE.licence,
    archives={"game": ARCHIVE},
    write=write,
)
