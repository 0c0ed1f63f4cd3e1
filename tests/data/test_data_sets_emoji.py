"""The sample set that ships with the product holds what it promises."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from collections import Counter

import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from orchestrator.data import build, sets
from orchestrator.data.build import cldr, shards

INFO = sets.info("emoji")


@pytest.fixture(scope="module")
def samples() -> list[dict]:
    """All samples as the webdataset library reads them, the record parsed."""
    read = webdataset.WebDataset([str(path) for path in sets.shards("emoji")], shardshuffle=False)
    return [{**sample, "record": json.loads(sample["json"])} for sample in read]


def test_every_concept_is_drawn_once_in_each_of_three_styles(samples: list[dict]) -> None:
    cells = Counter((s["record"]["concept"], s["record"]["style"]) for s in samples)
    styles = Counter(style for _, style in cells)
    assert len(samples) == len(cells) == INFO["samples"] == 3528
    assert len({concept for concept, _ in cells}) == INFO["concepts"] == 1176
    assert styles == INFO["styles"] == {"noto": 1176, "noto-v1": 1176, "fluent-emoji-flat": 1176}


def test_there_are_no_skin_tones_and_no_two_concepts_share_a_name(samples: list[dict]) -> None:
    assert not any(cldr.has_skin_tone(s["record"]["char"]) for s in samples)
    named = {(s["record"]["concept"], s["record"]["char"], s["txt"]) for s in samples}
    assert len(named) == len({name for _, _, name in named}) == len({char for _, char, _ in named}) == 1176


def test_samples_have_images_with_alpha_captions_labels_and_a_source(samples: list[dict]) -> None:
    licences = {"noto": "Apache-2.0", "noto-v1": "Apache-2.0", "fluent-emoji-flat": "MIT"}
    transparent = 0
    for s in samples:
        record = s["record"]
        image = Image.open(io.BytesIO(s["webp"]))
        assert (image.format, image.size) == ("WEBP", (64, 64))
        transparent += image.mode == "RGBA" and image.getchannel("A").getextrema()[0] == 0
        assert record["sha256"] == hashlib.sha256(s["webp"]).hexdigest()
        assert record["captions"]["name"] == s["txt"].decode()
        assert record["captions"]["keywords"]
        assert record["source"]["licence"] == licences[record["style"]]
    assert transparent > 0.99 * len(samples)


def test_categories_cover_every_sample(samples: list[dict]) -> None:
    labels = {(s["record"]["category"], s["record"]["subcategory"]) for s in samples}
    assert len({category for category, _ in labels}) == INFO["categories"] == 9
    assert len({subcategory for _, subcategory in labels}) == INFO["subcategories"] == 95
    assert ("other", "other") not in labels


def test_order_is_not_by_concept_or_style(samples: list[dict]) -> None:
    records = [s["record"] for s in samples]
    assert sum(a["concept"] == b["concept"] for a, b in itertools.pairwise(records)) < 20
    for start in range(0, len(records), 1176):
        counts = Counter(record["style"] for record in records[start : start + 1176])
        assert min(counts.values()) > 300


def test_names_and_keywords_come_in_fifteen_languages(samples: list[dict]) -> None:
    rows = pq.read_table(sets.captions("emoji")).to_pylist()
    concepts = {s["record"]["concept"] for s in samples}
    languages = ["ar", "de", "en", "es", "fr", "hi", "it", "ja", "ko", "pl", "pt", "sw", "tr", "uk", "zh"]
    assert sorted(INFO["languages"]) == languages
    assert {(row["concept"], row["lang"]) for row in rows} == {(c, lang) for c in concepts for lang in languages}
    assert len(rows) == INFO["captions"]["rows"] == 1176 * 15
    assert all(row["name"] for row in rows)
    names = {(row["concept"], row["lang"]): row["name"] for row in rows}
    assert (names["pig", "uk"], names["pig", "ja"], names["pig", "sw"]) == ("свиня", "ブタ", "nguruwe")


def test_committed_files_are_those_of_set_json_within_16_mb_and_with_their_licences() -> None:
    folder = sets.SETS["emoji"]
    for entry in [*INFO["shards"], INFO["captions"]]:
        assert shards.file_sha256(folder / entry["name"]) == entry["sha256"]
    files = [file for file in folder.iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 16e6
    text = (folder / "NOTICE").read_text(encoding="utf-8")
    for words in ("Apache License", "Microsoft Corporation", "UNICODE LICENSE V3", "Google Inc", "Changes: "):
        assert words in text


def test_content_digest_of_the_committed_bytes_is_the_promised_one() -> None:
    assert shards.content_digest(sets.SETS["emoji"]) == INFO["content_digest"]


def test_the_builder_takes_the_committed_set_for_its_own() -> None:
    assert build.current(build.builder("emoji"), sets.SETS["emoji"]) == INFO


def test_tables_of_sets_import_nothing_heavy() -> None:
    import subprocess
    import sys

    heavy = "{'numpy', 'pyarrow', 'PIL', 'torch', 'ray', 'webdataset', 'resvg_py'}"
    code = f"import sys, orchestrator.data.sets, orchestrator.data.build.emoji; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_unknown_set_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        sets.shards("emojis")
