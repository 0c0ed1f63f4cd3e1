"""Builders against the real registries: what they make is what was promised."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from orchestrator.data import build, sets
from orchestrator.data.build import iconify, shards
from orchestrator.data.build.archives import fetch, members

pytestmark = pytest.mark.real_data


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
def test_rebuilding_the_sample_set_gives_equal_pixels_and_captions(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    info = build.build("emoji", tmp_path / "emoji")
    assert info["content_digest"] == sets.info("emoji")["content_digest"]
    assert (tmp_path / "emoji" / "NOTICE").read_text() == (sets.SETS["emoji"] / "NOTICE").read_text()


@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
def test_iconify_has_its_icons_a_long_tail_and_the_licences_it_says(tmp_path: Path) -> None:
    licences, captions = set(), Counter[str]()
    for _, data in members(fetch(iconify.ARCHIVE, tmp_path), r"package/json/[^/]+\.json"):
        for _, row in iconify.rows(json.loads(data)):
            licences.add(row["json"]["source"]["licence"])
            captions[row["txt"]] += 1
    assert licences == set(iconify.LICENCE.split(" AND "))
    assert captions.total() == 390_629
    assert len(captions) == pytest.approx(113_000, rel=0.05)
    assert sum(count == 1 for count in captions.values()) > len(captions) / 2


DEBIAN = pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs Debian's apt-get")


@DEBIAN
@pytest.mark.timeout(600)
def test_clip_art_is_as_dirty_as_it_was_uploaded(tmp_path: Path) -> None:
    info = build.build("openclipart", tmp_path / "set")
    assert (info["samples"], info["links"], info["categories"]) == (8121, 1221, 22)
    samples = list(shards.read_shards([tmp_path / "set" / shard["name"] for shard in info["shards"]]))
    titles = Counter(sample["txt"] for sample in samples)
    assert (titles[b""], titles[b"gramastar"], titles[b"card"]) == (62, 1375, 226)
    assert len({sample["png"] for sample in samples}) <= 8121 - 1221


@DEBIAN
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "samples", "languages", "pairs"),
    [("tuxpaint", 950, 78, 62_340), ("wesnoth", 517, 48, 7427), ("gcompris", 359, 45, 8787)],
)
def test_sets_with_human_captions_have_their_languages(
    name: str, samples: int, languages: int, pairs: int, tmp_path: Path
) -> None:
    pytest.importorskip("resvg_py")
    info = build.build(name, tmp_path / "set")
    assert info["samples"] == samples
    assert (len(info["languages"]), sum(info["languages"].values())) == (languages, pairs)


@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs Debian's apt-get")
def test_fashion_mnist_has_balanced_classes_in_both_parts(tmp_path: Path) -> None:
    info = build.build("fashion-mnist", tmp_path / "fashion")
    assert info["parts"] == {"train": 60000, "test": 10000}
    paths = [tmp_path / "fashion" / shard["name"] for shard in info["shards"]]
    records = [json.loads(sample["json"]) for sample in shards.read_shards(paths)]
    counts = Counter((record["part"], record["class"]) for record in records)
    assert set(counts.values()) == {6000, 1000}
    assert len(counts) == 20
