"""GCompris' pictures out of Qt's files: what is said of a picture is found, in every language, and whose it is."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import pytest

from orchestrator.data.build import gcompris
from orchestrator.data.build.notice import Work
from orchestrator.data.build.qt import QM_MAGIC, resources, translations


def rcc(files: dict[str, bytes], compressed: bool) -> bytes:
    """A resource file with all files in one folder `f`: header, tree, contents, names."""
    names, offsets = b"", []
    for name in ("f", *files):
        offsets.append(len(names))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    contents, starts = b"", []
    for data in files.values():
        starts.append(len(contents))
        body = struct.pack(">I", len(data)) + zlib.compress(data) if compressed else data
        contents += struct.pack(">I", len(body)) + body
    tree = struct.pack(">IHIIQ", 0, 2, 1, 1, 0) + struct.pack(">IHIIQ", 0, 2, len(files), 2, 0)
    for offset, start in zip(offsets[1:], starts):
        tree += struct.pack(">IHIIQ", offset, int(compressed), 0, start, 0)
    places = (20, 20 + len(tree), 20 + len(tree) + len(contents))
    return struct.pack(">4s4I", b"qres", 2, *places) + tree + contents + names


def qm(texts: dict[str, list[str]]) -> bytes:
    """A catalogue of source -> translations, with a context section before, and parts nobody looks at."""
    messages = b""
    for source, translated in texts.items():
        for text in translated:
            messages += struct.pack(">BI", 3, 2 * len(text)) + text.encode("utf-16-be")
        messages += struct.pack(">BI", 8, 0xFFFFFFFF) + struct.pack(">BI", 5, 7)
        messages += struct.pack(">BI", 6, len(source.encode())) + source.encode() + b"\x01"
    return QM_MAGIC + struct.pack(">BI", 0x42, 3) + b"abc" + struct.pack(">BI", 0x69, len(messages)) + messages


@pytest.mark.parametrize("compressed", [False, True])
def test_resources_are_read(compressed: bool) -> None:
    files = {"a.qml": b"text" * 50, "ü.webp": b"\0\1"}
    assert resources(rcc(files, compressed)) == {f"/f/{name}": data for name, data in files.items()}


def test_a_catalogue_gives_the_first_form_of_each_source() -> None:
    assert translations(qm({"A dog": ["Ein Hund", "Hunde"], "Straße": ["road"]})) == {
        "A dog": "Ein Hund",
        "Straße": "road",
    }


@pytest.mark.parametrize("read", [resources, translations])
def test_other_files_are_refused(read) -> None:
    with pytest.raises(ValueError, match="not a"):
        read(b"something else that is long enough for a header")


README = b"""Copyright: A. Person
License: Public Domain
Source: https://example.org/dog.jpg
Files:
dog.webp
sub/cat.webp

Copyright:
  Copyright 2011 NASA
  Copyright 2018 B. Other
License: Unheard of
Files:
  sun.webp
"""
BOARD = rb"""QtObject { property var tab: [
 { "image": "qrc:/x.svg", "title": qsTr("Dog"), "text": qsTr("A \"dog\" barks.\nLoudly."),
   "image2": "qrc:ROOT/dog.webp", "text2": qsTr("Who barks?"), "x": 0.1 },
 { "title": qsTr("Nothing"), "text": qsTr("No picture."), "image2": "qrc:ROOT/none.webp" } ] }"""


def test_what_is_told_of_a_picture_is_found_with_its_translations_and_its_author(tmp_path: Path) -> None:
    root = f"{gcompris.ROOT}explore_farm_animals/resource"
    files = {
        f"{root}/board/board1.qml": BOARD.replace(b"ROOT", root.encode()),
        f"{root}/dog.webp": b"picture",
        f"{root}/README": README,
    }
    (tmp_path / "gcompris_de.qm").write_bytes(
        qm({'A "dog" barks.\nLoudly.': ["Ein Hund bellt."], "Dog": ["Hund"], "Who barks?": ["Wer bellt?"]})
    )
    (tmp_path / "gcompris_pt_BR.qm").write_bytes(qm({"Dog": ["Cachorro"]}))  # not what is told
    (picture,) = gcompris.explored("explore_farm_animals", files, gcompris.Say(tmp_path))
    assert (picture.style, picture.category, picture.image) == ("explored", "farm animals", b"picture")
    assert picture.texts == {
        "en": {"original": 'A "dog" barks. Loudly.', "short": "Dog"},
        "de": {"original": "Ein Hund bellt.", "short": "Hund"},
    }
    assert picture.work == Work(
        "explore_farm_animals/resource/dog.webp", "CC-PDDC", "A. Person", "https://example.org/dog.jpg"
    )
    record = json.loads(gcompris.sample(picture)["json"])
    assert record["captions"] == {"short": "Dog", "de": {"original": "Ein Hund bellt.", "short": "Hund"}}


def test_a_licence_that_is_not_known_is_the_packages() -> None:
    assert set(gcompris.works({"/r/README": README})) == {"/r/dog.webp", "/r/sub/cat.webp"}


@pytest.mark.parametrize(
    ("file", "name"), [("screwDriver2", "screw driver"), ("IndiaGate", "india gate"), ("usCapitol", "us capitol")]
)
def test_things_are_called_what_their_files_are(file: str, name: str) -> None:
    assert gcompris.name_of(file) == name


def test_words_have_their_translations_and_numbers_their_descriptions() -> None:
    root = f"{gcompris.ROOT}lang/resource"
    content = [
        {"description": "dog", "image": "dog.webp", "voice": "voices-$CA/$LOCALE/words/dog.$CA"},
        {"description": "six", "image": "six.webp", "voice": "voices-$CA/$LOCALE/alphabet/U0036.$CA"},
        {"description": "cat", "image": "not-here.webp", "voice": "voices-$CA/$LOCALE/words/cat.$CA"},
    ]
    chapter = [{"content": [{"name": "animals", "content": content}]}]
    files = {
        f"{root}/words_sample.json": json.dumps(chapter).encode(),
        f"{root}/content-de.json": json.dumps({"dog.ogg": "der Hund", "U0036.ogg": "sechs"}).encode(),
        f"{root}/content-en.json": json.dumps({"dog.ogg": "dog"}).encode(),
        f"{root}/words_sample/dog.webp": b"d",
        f"{root}/words_sample/six.webp": b"6",
    }
    dog, six = gcompris.words(files)
    assert dog.texts == {"de": {"original": "der Hund"}, "en": {"original": "dog"}}
    assert six.texts == {"de": {"original": "sechs"}, "en": {"original": "six"}}
    assert dog.work.licence == "CC-BY-SA-3.0"
