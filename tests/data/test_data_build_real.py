"""Builders against the real registries: what they make is what was promised."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from orchestrator.data import build, sets
from orchestrator.data.build import shards

pytestmark = pytest.mark.real_data


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
def test_rebuilding_the_sample_set_gives_equal_pixels_and_captions(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    info = build.build("emoji", tmp_path / "emoji")
    assert info["content_digest"] == sets.info("emoji")["content_digest"]
    assert (tmp_path / "emoji" / "NOTICE").read_text() == (sets.SETS["emoji"] / "NOTICE").read_text()


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
