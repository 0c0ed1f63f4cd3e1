"""The builders' pure parts: matching icons to names, deterministic shards, digests, and errors that say the remedy."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.data import build
from orchestrator.data.build import cldr, fashion_mnist, shards
from orchestrator.data.build.archives import Archive, fetch, members
from orchestrator.data.build.captions import Annotation, write_captions
from orchestrator.data.build.emoji import Drawing, categories, in_every_style
from orchestrator.data.build.icons import IconSet, rasterise, to_webp
from orchestrator.data.build.notice import notice
from orchestrator.errors import UserError

NAMES = {
    "😀": "grinning face",
    "❤": "red heart",
    "#⃣": "keycap: #",
    "*⃣": "keycap: *",
    "👋🏽": "waving hand: medium skin tone",
}
ARCHIVE = Archive("npm", "@some/package", "1.0.0", "0" * 64, "MIT", "2020 A. Person", "https://example.org")


def encoded(colour: tuple[int, int, int, int], suffix: str) -> bytes:
    stream = io.BytesIO()
    image = Image.new("RGBA", (4, 4), colour)
    image.save(stream, suffix.upper(), **({"lossless": True, "exact": True} if suffix == "webp" else {}))
    return stream.getvalue()


def sample(colour: int, suffix: str = "webp", text: str = "a square") -> dict[str, bytes]:
    image = encoded((colour, 10, 20, 200), suffix)
    record = {"concept": "square", "sha256": shards.hashlib.sha256(image).hexdigest()}
    return {suffix: image, "txt": text.encode(), "json": shards.to_json(record)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grinning face", "grinning-face"),
        ("Côte d’Ivoire", "cote-divoire"),
        ("woman's hat", "womans-hat"),
        ("flag: Bosnia & Herzegovina", "flag-bosnia-herzegovina"),
        ("keycap: #", "keycap"),
        ("  odd -- spacing ", "odd-spacing"),
    ],
)
def test_slug_of_a_name_is_the_icons_name(name: str, expected: str) -> None:
    assert cldr.slug(name) == expected


def test_variation_selectors_do_not_matter() -> None:
    assert cldr.strip_variation("❤️") == "❤"
    assert cldr.from_hex("2764-fe0f") == cldr.from_hex("2764") == "❤"
    assert cldr.to_hex(cldr.from_hex("0023-fe0f-20e3")) == "0023-20e3"


def test_annotations_are_keyed_without_variation_selectors_and_unnamed_ones_are_left_out() -> None:
    entries = {"❤️": {"default": ["love"], "tts": ["red heart"]}, "→": {"default": ["arrow"]}}
    document = json.dumps({"annotations": {"identity": {}, "annotations": entries}}).encode()
    assert cldr.parse(document, "annotations") == {"❤": Annotation("red heart", ("love",))}
    assert cldr.parse(b'{"annotations": {"identity": {}}}', "annotations") == {}


def test_concept_ids_are_distinct_where_slugs_are_not() -> None:
    ids = cldr.concept_ids(NAMES)
    assert ids["😀"] == "grinning-face"
    assert (ids["#⃣"], ids["*⃣"]) == ("keycap-0023-20e3", "keycap-002a-20e3")
    assert len(set(ids.values())) == len(NAMES)


@pytest.mark.parametrize(
    ("style", "chars", "icon", "expected"),
    [
        ("any", {"1f600": "smile"}, "smile", "😀"),  # by code points
        ("any", {"2764-fe0f": "love"}, "love", "❤"),
        ("any", {}, "red-heart", "❤"),  # by the name's slug
        ("any", {"20e3": "red-heart"}, "red-heart", None),  # code points win over the name
        ("any", {"20e3": "love", "2764": "love"}, "love", "❤"),  # any of several code points
        ("any", {}, "keycap", None),  # two names have this slug, and it is neither's picture
        ("noto-v1", {}, "keycap-pound", "#⃣"),  # renamed
        ("any", {}, "unheard-of", None),
    ],
)
def test_icons_match_by_code_points_then_by_name(style: str, chars: dict, icon: str, expected: str | None) -> None:
    matched = IconSet(style, {icon: {"body": ""}}, chars).match(NAMES)
    assert matched.get(icon) == expected


def test_only_what_every_style_draws_is_chosen_and_no_skin_tones() -> None:
    both = [Drawing(style, "x", char) for style in ("a", "b") for char in ("😀", "👋🏽")]
    assert in_every_style([*both, Drawing("a", "y", "❤")]) == [both[0], both[2]]


def test_categories_reach_skin_tones_and_skip_components() -> None:
    groups = {"groups": {"1": "people"}, "subgroups": {"16": "hand"}}
    emoji = [
        {
            "hexcode": "1F44B-FE0F",
            "group": 1,
            "subgroup": 16,
            "skins": [{"hexcode": "1F44B-1F3FD", "group": 1, "subgroup": 16}],
        },
        {"hexcode": "1F1E6"},
    ]
    assert categories(groups, emoji) == {"👋": ("people", "hand"), "👋🏽": ("people", "hand")}


def test_svg_takes_the_icons_box_before_the_sets() -> None:
    icons = IconSet(
        "any", {"a": {"body": "<g/>", "width": 20, "left": -2}, "b": {"body": "<g/>"}}, {}, width=32, height=8
    )
    assert 'viewBox="-2 0 20 8" width="64" height="64"' in icons.svg("a", 64)
    assert 'viewBox="0 0 32 8"' in icons.svg("b", 64)


def test_rasterised_pixels_survive_webp_and_transparent_ones_have_no_colour() -> None:
    pytest.importorskip("resvg_py")
    icons = IconSet("any", {"a": {"body": '<circle cx="8" cy="8" r="6" fill="#f80" fill-opacity=".5"/>'}}, {})
    image = rasterise(icons.svg("a", 64))
    pixels = np.array(image)
    assert image.size == (64, 64)
    assert set(np.unique(pixels[..., 3])) >= {0, 128}
    assert not pixels[pixels[..., 3] == 0].any()
    assert np.array_equal(np.array(Image.open(io.BytesIO(to_webp(image)))), pixels)


def test_a_missing_rasteriser_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(UserError, match="pip install resvg-py"):
        rasterise("<svg/>")


def test_shards_are_balanced_and_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    samples = [sample(colour) for colour in range(7)]
    written = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        written.append(shards.write_shards(folder, "set", samples, total=7, largest=3, first_key=40))
    assert written[0] == written[1]
    assert [shard["samples"] for shard in written[0]] == [2, 2, 3]
    paths = [tmp_path / "one" / shard["name"] for shard in written[0]]
    read = list(shards.read_shards(paths))
    assert [s["__key__"] for s in read] == [f"{key:06d}" for key in range(40, 47)]
    assert [s["webp"] for s in read] == [s["webp"] for s in samples]
    with tarfile.open(paths[0]) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")


def test_order_depends_on_the_seed_alone() -> None:
    names = [f"{k}" for k in range(50)]
    assert shards.shuffled(names, 0) == shards.shuffled(reversed(names), 0)
    assert sorted(shards.shuffled(names, 0)) == sorted(names)
    assert len({tuple(shards.shuffled(names, seed)) for seed in range(3)} | {tuple(names)}) == 4


def digest_of(folder: Path, samples: list[dict[str, bytes]], largest: int = 9) -> str:
    folder.mkdir()
    shards.write_shards(folder, "set", samples, len(samples), largest)
    return shards.content_digest(folder)


def test_content_digest_sees_pixels_and_captions_not_encoding_order_or_shards(tmp_path: Path) -> None:
    samples = [sample(1), sample(2), sample(3)]
    reference = digest_of(tmp_path / "a", samples)
    assert digest_of(tmp_path / "b", samples[::-1], largest=1) == reference
    assert digest_of(tmp_path / "c", [sample(k, "png") for k in (1, 2, 3)]) == reference
    assert digest_of(tmp_path / "d", [sample(1), sample(2), sample(4)]) != reference
    assert digest_of(tmp_path / "e", [sample(1), sample(2), sample(3, text="a circle")]) != reference
    assert digest_of(tmp_path / "f", [*samples, sample(3)]) != reference


def test_content_digest_sees_translations(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    digests = {digest_of(folder, [sample(1)])}
    for name in ("червоне серце", "серце"):
        texts = {"uk": {"❤": Annotation(name, ("любов",))}, "de": {}}
        assert write_captions(folder / "captions.parquet", {"❤": "red-heart"}, texts) == {"uk": 1}
        digests.add(shards.content_digest(folder))
    assert len(digests) == 3


def test_members_are_read_in_place_by_pattern(tmp_path: Path) -> None:
    file = tmp_path / "a.tgz"
    with tarfile.open(file, "w:gz") as tar:
        for name in ("./package/icons.json", "package/readme.md", "package/chars.json"):
            shards.add_member(tar, name, name.encode())
    assert [name for name, _ in members(file, r"package/\w+\.json")] == ["package/icons.json", "package/chars.json"]


def test_an_archive_other_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "some-package-1.0.0.tgz").write_bytes(b"something else")
    with pytest.raises(UserError, match="Delete the file and try again"):
        fetch(ARCHIVE, tmp_path)


@pytest.mark.parametrize(("registry", "tool"), [("npm", "npm"), ("debian", "apt-get")])
def test_a_missing_client_is_named_with_the_way_out(registry, tool, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    archive = Archive(registry, "package", "1", "0" * 64, "MIT", "", "")
    with pytest.raises(UserError, match=f"`{tool}` is needed") as caught:
        fetch(archive, tmp_path / "work")
    assert caught.value.remedy


def test_a_client_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = tmp_path / "npm"
    client.write_text("#!/bin/sh\necho 'no such package' >&2\nexit 1\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(UserError, match="no such package"):
        fetch(ARCHIVE, tmp_path / "work")


@pytest.mark.parametrize("version", ["1:2.0-1", "2.0-1"])
def test_debian_files_are_found_with_and_without_an_epoch(version: str, tmp_path: Path) -> None:
    archive = Archive("debian", "data", version, "", "MIT", "", "")
    file = tmp_path / f"data_{version.replace(':', '%3a')}_all.deb"
    file.touch()
    assert list(tmp_path.glob(archive.file_pattern)) == [file]


def test_unknown_set_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"Did you mean 'fashion-mnist'\?.*emoji-all"):
        build.builder("fashion_mnist")


@pytest.mark.parametrize("name", build.BUILDERS)
def test_every_listed_builder_loads_is_pinned_and_its_licences_have_texts(name: str) -> None:
    spec = build.builder(name)
    assert spec.name == name
    assert all(len(archive.sha256) == 64 for archive in spec.archives.values())
    licences = {licence for archive in spec.archives.values() for licence in archive.licence.split(" AND ")}
    assert licences == set(spec.licence.split(" AND "))
    text = notice(name, spec.archives.values(), "none.")
    assert all(f"{a.package} {a.version}" in text and a.author in text for a in spec.archives.values())


def small_builder(calls: list[str], colours: list[int]) -> build.Builder:
    def write(folder, files, say):
        calls.append("written")
        written = shards.write_shards(folder, "small", [sample(c) for c in colours], len(colours), 2)
        return {"samples": len(colours), "shards": written}

    return build.Builder("small", "Squares.", "MIT", {}, write, version=len(colours))


def test_building_again_does_nothing_until_a_file_is_damaged_or_the_builder_changes(tmp_path: Path) -> None:
    out, calls = tmp_path / "small", []
    (out / "mine").mkdir(parents=True)
    first = build.make(small_builder(calls, [1, 2, 3]), out, tmp_path)
    assert build.make(small_builder(calls, [1, 2, 3]), out, tmp_path) == first
    assert json.loads((out / "set.json").read_text()) == first
    assert len(calls) == 1
    (out / "small-00001.tar").write_bytes(b"damaged")
    assert build.make(small_builder(calls, [1, 2, 3]), out, tmp_path) == first
    assert len(calls) == 2
    build.make(small_builder(calls, [1, 2]), out, tmp_path)
    assert sorted(file.name for file in out.iterdir()) == ["mine", "set.json", "small-00000.tar"]
    assert [file.name for file in tmp_path.iterdir()] == ["small"]


def test_an_interrupted_build_leaves_no_set_json_and_the_next_one_finishes(tmp_path: Path) -> None:
    def broken(folder, files, say):
        (folder / "small-00000.tar").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build.make(build.Builder("small", "", "MIT", {}, broken), tmp_path / "small", tmp_path)
    assert not (tmp_path / "small").exists()
    assert build.make(small_builder([], [1]), tmp_path / "small", tmp_path)["samples"] == 1


def test_idx_files_are_read_by_their_header() -> None:
    data = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (2, 2, 3)) + bytes(range(12))
    assert np.array_equal(fashion_mnist.read_idx(data), np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    with pytest.raises(ValueError, match="not an IDX file"):
        fashion_mnist.read_idx(b"\0\0\x0d\x01\0\0\0\0")


def test_fashion_captions_name_the_class() -> None:
    assert fashion_mnist.caption(9) == "a photo of a ankle boot."
