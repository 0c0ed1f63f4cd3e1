"""Sets from Debian's packages: what their files say is read as it stands, and dirt stays in."""

from __future__ import annotations

import io
import json
import struct
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from orchestrator.data.build import openclipart, tuxpaint, wesnoth
from orchestrator.data.build.archives import unpack
from orchestrator.data.build.captions import language

SVG = """<svg xmlns="http://www.w3.org/2000/svg"><metadata>
<rdf:RDF xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><cc:Work rdf:about=""><dc:title> {title}</dc:title>
<dc:description>{description}</dc:description>
<dc:subject><rdf:Bag><rdf:li>people</rdf:li><rdf:li></rdf:li><rdf:li>hash(0x8a393fc)</rdf:li></rdf:Bag></dc:subject>
<dc:creator><cc:Agent><dc:title>Gerald G.</dc:title></cc:Agent></dc:creator>
<cc:license rdf:resource="{licence}"/><dc:language>EN</dc:language></cc:Work></rdf:RDF></metadata></svg>"""
GPL = "http://creativecommons.org/licenses/GPL/2.0/"


def test_clip_art_says_what_it_is_in_its_metadata() -> None:
    document = SVG.format(title="Woman &amp; Nurse", description="", licence=GPL)
    assert openclipart.metadata(document.encode()) == {
        "title": "Woman & Nurse",  # not the creator's
        "description": "",
        "tags": ["people", "hash(0x8a393fc)"],
        "language": "EN",
        "licence": GPL,
    }
    silent = openclipart.metadata(b'<svg xmlns="http://www.w3.org/2000/svg"/>')
    assert not any(silent.values())


def test_clip_art_keeps_its_bytes_duplicates_and_missing_titles(tmp_path: Path) -> None:
    for name, title in (("people/nurse", "card"), ("people/work/nurse", "")):
        for root in ("png", "svg"):
            (tmp_path / root / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "svg" / f"{name}.svg").write_text(SVG.format(title=title, description="A nurse", licence=""))
    (tmp_path / "png/people/nurse.png").write_bytes(b"no picture at all")
    (tmp_path / "png/people/work/nurse.png").symlink_to("../nurse.png")
    names = ["people/nurse.png", "people/work/nurse.png"]
    plain, linked = openclipart.samples(tmp_path, names)
    assert plain["png"] == linked["png"] == b"no picture at all"
    assert (plain["txt"], linked["txt"]) == (b"card", b"")
    record = json.loads(linked["json"])
    assert (record["category"], record["subcategory"], record["lang"]) == ("people", "work", "EN")
    assert record["captions"] == {"long": "A nurse", "keywords": ["people", "hash(0x8a393fc)"]}
    assert (record["source"]["link"], record["source"]["licence"]) == ("people/nurse.png", "CC-PDDC")
    assert "subcategory" not in json.loads(plain["json"])
    assert "link" not in json.loads(plain["json"])["source"]


def test_stamps_have_captions_by_language() -> None:
    document = "A rabbit.\nca@valencia.utf8=Un conill.\nuk.utf8=Кролик.\nde.utf8= \npt_BR.utf8=Um coelho = x.\nnoise\n"
    assert tuxpaint.texts(document) == {
        "en": "A rabbit.",
        "ca-valencia": "Un conill.",
        "uk": "Кролик.",
        "pt-BR": "Um coelho = x.",
    }


@pytest.mark.parametrize(
    ("locale", "tag"),
    [("de", "de"), ("zh_TW", "zh-TW"), ("sr@latin", "sr-Latn"), ("ca_ES@valencia", "ca-ES-valencia")],
)
def test_locales_become_language_tags(locale: str, tag: str) -> None:
    assert language(locale) == tag


@pytest.mark.parametrize(
    ("size", "expected"),
    [('width="128pt" height="64pt"', (256, 128)), ('width="5cm" height="10cm"', (128, 256)), ("", (256, 256))],
)
def test_stamps_are_their_png_or_drawn_in_proportion(size: str, expected: tuple[int, int], tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    box = "" if size else 'viewBox="0 0 10 10" '
    (tmp_path / "ant.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}{size}><rect width="9" height="9"/></svg>'
    )
    suffix, image = tuxpaint.picture(tmp_path / "ant.txt")
    assert (suffix, Image.open(io.BytesIO(image)).size) == ("webp", expected)
    (tmp_path / "ant.png").write_bytes(b"png")
    assert tuxpaint.picture(tmp_path / "ant.txt") == ("png", b"png")


UNITS = """#textdomain wesnoth-units
#define PATH
units/dune/#enddef
#define ARCHER
{PATH}archer.png~RC(magenta>red)#enddef
[unit_type]
    id=Dune Archer
    name= _ "female^Dune Archer"
    race=dunefolk # a comment
    image="{ARCHER}"
    profile=portraits/archer.png
    description= _ "Says ""no"".
[unit_type]
is not a tag in here."
    [attack]
        description=_"sword"
        image="attacks/sword.png"
    [/attack]
    cost={COST 17}
[/unit_type]
[other]
    id=nobody
[/other]
"""


def test_units_are_read_with_their_own_attributes_alone(tmp_path: Path) -> None:
    (unit,) = wesnoth.units(UNITS)
    assert unit == {
        "textdomain": "wesnoth-units",
        "id": "Dune Archer",
        "name": "female^Dune Archer",
        "race": "dunefolk",
        "image": "units/dune/archer.png~RC(magenta>red)",
        "profile": "portraits/archer.png",
        "description": 'Says "no".\n[unit_type]\nis not a tag in here.',
        "cost": "{COST 17}",
    }
    assert wesnoth.name_of(unit["name"]) == "Dune Archer"
    assert wesnoth.find(unit["image"], [tmp_path]) is None
    (tmp_path / "b/units/dune").mkdir(parents=True)
    (tmp_path / "b/units/dune/archer.png").touch()
    assert wesnoth.find(unit["image"], [tmp_path, tmp_path / "b"]) == tmp_path / "b/units/dune/archer.png"
    assert wesnoth.find("", [tmp_path]) is None


def write_mo(file: Path, texts: dict[str, str]) -> None:
    """A gettext catalogue: magic, version, count, two tables of (length, offset), no hash table, the strings."""
    file.parent.mkdir(parents=True)
    texts = {"": "Content-Type: text/plain; charset=UTF-8\n", **texts}
    strings = [text.encode() for text in [*sorted(texts), *(texts[key] for key in sorted(texts))]]
    start = 28 + 8 * len(strings)
    offsets = [start + sum(len(s) + 1 for s in strings[:k]) for k in range(len(strings))]
    header = struct.pack("<7I", 0x950412DE, 0, len(texts), 28, 28 + 8 * len(texts), 0, start)
    table = b"".join(struct.pack("<2I", len(s), offset) for s, offset in zip(strings, offsets, strict=True))
    file.write_bytes(header + table + b"".join(s + b"\0" for s in strings))


def test_a_locale_says_what_it_translates_and_borrows_from_no_other(tmp_path: Path) -> None:
    unit = {"textdomain": "units", "name": "female^Archer", "description": "She shoots."}
    write_mo(tmp_path / "pt/LC_MESSAGES/units.mo", {"She shoots.": "Ela atira.", "female^Archer": "Arqueira"})
    (tmp_path / "pt_BR/LC_MESSAGES").mkdir(parents=True)
    assert wesnoth.translations(tmp_path, unit) == {"pt": {"original": "Ela atira.", "short": "Arqueira"}}
    assert wesnoth.translations(tmp_path, {**unit, "textdomain": "another"}) == {}


@pytest.mark.skipif(not Path("/usr/bin/dpkg-deb").exists(), reason="needs dpkg-deb")
def test_packages_are_unpacked_afresh_with_their_links(tmp_path: Path) -> None:
    tree, out = tmp_path / "tree", tmp_path / "out"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: N <n@n>\nDescription: x\n"
    )
    (tree / "a").write_text("a")
    (tree / "b").symlink_to("a")
    subprocess.run(["dpkg-deb", "--build", tree, tmp_path / "x.deb"], check=True, capture_output=True)
    out.mkdir()
    (out / "stale").touch()
    assert unpack(tmp_path / "x.deb", out) == out
    assert sorted(path.name for path in out.iterdir()) == ["a", "b"]
    assert (out / "b").readlink() == Path("a")
