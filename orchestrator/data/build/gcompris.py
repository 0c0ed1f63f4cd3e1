"""GCompris' pictures: photographs with a paragraph about each, views with a line, words, and things by name.

They lie in the resources of a program for children, one file an activity. Four kinds (`style`) have text:

    explored    photographs of animals, monuments and music, with a title and some sentences
    views       famous places and paintings, with a line
    words       small pictures, each for a word
    things      photographs to be put into categories; a name is all that is said of them, and it is the file's

What is said of the first two is translated by the program's catalogues, words by lists of their own. Paintings that
are cut up for a puzzle, and drawings of the games, are left out. Most pictures have an author and a licence of their
own; they are in NOTICE, and in each sample's json.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.data.build import Builder
from orchestrator.data.build.archives import Archive, unpack
from orchestrator.data.build.captions import language
from orchestrator.data.build.notice import Work, notice
from orchestrator.data.build.processes import WORK
from orchestrator.data.build.qt import resources, translations
from orchestrator.data.build.shards import shuffled, to_json, write_shards

SEED = 0
"""Of the order of samples."""
LICENCES = {
    "CC-BY 2.0": "CC-BY-2.0",
    "CC-BY 3.0": "CC-BY-3.0",
    "CC-BY 4.0": "CC-BY-4.0",
    "CC-BY-SA 4.0": "CC-BY-SA-4.0",
    "CC0-1.0": "CC0-1.0",
    "GPLv2+": "GPL-2.0-or-later",
    "GPLv3": "GPL-3.0-only",
    "public domain": "CC-PDDC",
}
"""Licences of single pictures as the package spells them -> SPDX."""
PROGRAM = Work(
    "gcompris-qt-data",
    "GPL-3.0-or-later",
    "2000-2023 by Bruno Coudoin and the GCompris developers <gcompris-devel@kde.org>",
    "https://gcompris.net",
)
"""Texts, and pictures of which nothing else is said."""
WORDS = Work("lang/resource/words_sample", "CC-BY-SA-3.0", "Arts4Apps project", "http://www.art4apps.org")
ARCHIVE = Archive(
    "debian",
    "gcompris-qt-data",
    "3.1-2",
    "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f",
    " AND ".join(sorted({*LICENCES.values(), WORDS.licence, PROGRAM.licence})),
    PROGRAM.author,
    PROGRAM.url,
)
ROOT = "/gcompris/src/activities/"
EXPLORED = ("explore_farm_animals", "explore_monuments", "explore_world_animals", "explore_world_music")
NO_THINGS = ("alphabets", "numbers")
"""Categories of signs: their one picture shows a sheet of them."""

_ENTRY = re.compile(r"\{[^{}]*\}")
_FIELD = re.compile(r'"(title|text|image2)":\s*(?:qsTr\()?"((?:[^"\\]|\\.)*)"')
_INSTRUCTION = re.compile(r'instruction:\s*qsTr\("((?:[^"\\]|\\.)*)"\)')
_WHOLE = re.compile(r'"pixmapfile"\s*:\s*"(image/[^"]+\.webp)",\s*"type"\s*:\s*"SHAPE_BACKGROUND_IMAGE"')
_NAME = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


@dataclass(frozen=True)
class Picture:
    """A picture and what is said of it.

    Attributes:
        style: which of the four kinds.
        category: what it belongs to, in the program.
        path: in the resources, below `ROOT`.
        image: WebP.
        texts: language -> slot -> text; English has `original`.
        work: whose it is.
    """

    style: str
    category: str
    path: str
    image: bytes
    texts: dict[str, dict[str, str]]
    work: Work = PROGRAM


def unquoted(text: str) -> str:
    """A string of the source as it is shown."""
    return " ".join(re.sub(r"\\(.)", lambda m: " " if m[1] == "n" else m[1], text).split())


def name_of(file: str) -> str:
    """What a file's name says: `screwDriver2` is a screw driver."""
    return " ".join(part.lower() for part in _NAME.findall(file))


def works(files: Mapping[str, bytes]) -> dict[str, Work]:
    """Path -> the picture's work, from the README files that lie beside them."""
    found, spelt = {}, {licence.lower(): spdx for licence, spdx in LICENCES.items()}
    for path, data in files.items():
        folder, _, name = path.rpartition("/")
        if name != "README":
            continue
        for entry in re.split(r"\n(?=Copyright:)", data.decode("utf-8")):
            author = re.search(r"Copyright:\s*(.*(?:\n +\S.*)*)", entry)
            licence = re.search(r"License:\s*(.*)", entry)
            url = re.search(r"https?://\S+", entry)
            spdx = spelt.get(licence[1].lower()) if licence else None
            for file in re.findall(r"^\s*([\w/.()-]+\.webp)\s*$", entry, re.MULTILINE):
                if author and spdx:
                    title = f"{folder.removeprefix(ROOT)}/{file}"
                    by = " and ".join(line.strip() for line in author[1].splitlines()).replace("Copyright ", "")
                    found[f"{folder}/{file}"] = Work(title, spdx, by, url[0] if url else PROGRAM.url)
    return found


class Say:
    """All translations of a text that is shown by the program."""

    def __init__(self, folder: Path) -> None:
        files = {f.stem.removeprefix("gcompris_"): f for f in sorted(folder.glob("gcompris_*.qm"))}
        self._catalogues = {name: translations(file.read_bytes()) for name, file in files.items() if name != "en"}

    def __call__(self, **texts: str) -> dict[str, dict[str, str]]:
        """Language -> slot -> text, given each slot's source; other languages have those that they translate."""
        found = {"en": {slot: unquoted(text) for slot, text in texts.items()}}
        for name, catalogue in self._catalogues.items():
            said = {slot: catalogue.get(_source(text), "") for slot, text in texts.items()}
            said = {slot: unquoted(text) for slot, text in said.items() if text and text != _source(texts[slot])}
            if "original" in said:
                found[language(name)] = said
        return found


def _source(text: str) -> str:
    """A string of the source as a catalogue has it."""
    return re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], text)


def explored(activity: str, files: Mapping[str, bytes], say: Say) -> Iterator[Picture]:
    """Photographs that an activity tells something of."""
    by = works(files)
    for path, data in sorted(files.items()):
        if "/board/" not in path or not path.endswith(".qml"):
            continue
        for entry in _ENTRY.findall(data.decode("utf-8")):
            known = dict(_FIELD.findall(entry))
            file = known.get("image2", "").removeprefix("qrc:")
            if file in files and "text" in known:
                texts = say(original=known["text"], short=known["title"])
                category = activity.removeprefix("explore_").removeprefix("world_").replace("_", " ")
                yield Picture("explored", category, file, files[file], texts, by.get(file, PROGRAM))


def views(files: Mapping[str, bytes], say: Say) -> Iterator[Picture]:
    """Whole pictures of the activity in which details are looked for."""
    by = works(files)
    for path, data in sorted(files.items()):
        if not path.endswith(".qml"):
            continue
        board = data.decode("utf-8")
        line, whole = _INSTRUCTION.search(board), _WHOLE.search(board)
        file = f"{ROOT}details/resource/{whole[1]}" if whole else ""
        if line and file in files:
            yield Picture("views", "details", file, files[file], say(original=line[1]), by.get(file, PROGRAM))


def words(files: Mapping[str, bytes]) -> Iterator[Picture]:
    """Pictures of words, each by its description, with the word in other languages."""
    root = f"{ROOT}lang/resource"
    lists = {
        language(path.rpartition("content-")[2].removesuffix(".json")): json.loads(data)
        for path, data in files.items()
        if path.startswith(f"{root}/content-") and path.endswith(".json")
    }
    for chapter in json.loads(files[f"{root}/words_sample.json"]):
        for lesson in chapter["content"]:
            for word in lesson["content"]:
                file = f"{root}/words_sample/{word['image']}"
                if file not in files:
                    continue
                key = f"{word['voice'].rpartition('/')[2].removesuffix('.$CA')}.ogg"
                texts = {lang: {"original": said[key].strip()} for lang, said in lists.items() if said.get(key)}
                english = {"en": {"original": texts.get("en", {}).get("original") or word["description"]}}
                yield Picture("words", lesson["name"], file, files[file], texts | english, WORDS)


def things(files: Mapping[str, bytes]) -> Iterator[Picture]:
    """Pictures to be put into categories, by the names of their files."""
    by, root = works(files), f"{ROOT}categorization/resource/images/"
    for file, image in sorted(files.items()):
        category, _, name = file.removeprefix(root).partition("/")
        if file.startswith(root) and file.endswith(".webp") and category not in NO_THINGS:
            texts = {"en": {"original": name_of(name.removesuffix(".webp"))}}
            yield Picture("things", category, file, image, texts, by.get(file, PROGRAM))


def pictures(program: Path) -> Iterator[Picture]:
    """All of the set, from the unpacked program's folder."""

    def activity(name: str) -> dict[str, bytes]:
        return resources((program / f"rcc/{name}.rcc").read_bytes())

    say = Say(program / "translations")
    for name in EXPLORED:
        yield from explored(name, activity(name), say)
    yield from views(activity("details"), say)
    yield from words(activity("lang"))
    yield from things(activity("categorization"))


def write(folder: Path, files: Mapping[str, Path], say: Callable[[str], None]) -> dict[str, Any]:
    """Write the set (`Builder.write`)."""
    program = unpack(files["program"], folder / WORK / "program") / "usr/share/gcompris-qt"
    found = {picture.path: picture for picture in pictures(program)}
    say(f"gcompris: {len(found)} pictures")
    shards = write_shards(folder, "gcompris", map(sample, (found[p] for p in shuffled(found, SEED))), len(found), 1000)
    used = {work.title: work for work in (PROGRAM, *(picture.work for picture in found.values()))}
    changes = "pictures and texts chosen, others left out."
    (folder / "NOTICE").write_text(notice("gcompris", used.values(), changes), encoding="utf-8")
    languages = Counter(language for picture in found.values() for language in picture.texts)
    return {
        "samples": len(found),
        "styles": dict(sorted(Counter(picture.style for picture in found.values()).items())),
        "languages": dict(sorted(languages.items())),
        "shards": shards,
    }


def sample(picture: Picture) -> dict[str, bytes]:
    """The sample of one picture."""
    english = picture.texts["en"]
    others = {lang: texts for lang, texts in sorted(picture.texts.items()) if lang != "en"}
    record = {
        "concept": (english.get("short") or english["original"]).lower(),
        "style": picture.style,
        "category": picture.category,
        "lang": "en",
        "captions": {slot: text for slot, text in english.items() if slot != "original"} | others,
        "source": {
            "package": ARCHIVE.package,
            "version": ARCHIVE.version,
            "path": picture.path.removeprefix(ROOT),
            "licence": picture.work.licence,
        },
        "sha256": hashlib.sha256(picture.image).hexdigest(),
    }
    return {"webp": picture.image, "txt": english["original"].encode(), "json": to_json(record)}


GCOMPRIS = Builder(
    name="gcompris",
    description="Photographs with a paragraph about each, views with a line, things and words by name, translated.",
    licence=ARCHIVE.licence,
    archives={"program": ARCHIVE},
    write=write,
)
