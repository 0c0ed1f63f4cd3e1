"""The layouts in which image-text pairs are published: each indexed as it comes, with its ids, sizes and languages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_shards import Members, image, open_store, sample, write_samples, write_shard

from orchestrator.data.index import index_shard
from orchestrator.data.source import known, prepare
from orchestrator.io.storage import Storage

PNG, WEBP = image(1), image(1, kind="WEBP")


def picture(suffix: str) -> bytes:
    return {"png": PNG, "webp": WEBP}.get(suffix, PNG)


def pair(key: str, suffix: str, caption: str | None, facts: dict | None = None) -> Members:
    """An image with its caption (none: in the json alone) and json."""
    members = [(f"{key}.{suffix}", picture(suffix))]
    members += [(f"{key}.json", json.dumps(facts).encode())] if facts is not None else []
    return members + ([(f"{key}.txt", caption.encode())] if caption is not None else [])


IMG2DATASET = {
    "caption": "a cat",
    "url": "https://example.org/cat.jpg",
    "key": "000420031",
    "status": "success",
    "error_message": None,
    "width": 8,
    "height": 8,
    "original_width": 640,
    "original_height": 480,
    "exif": "{}",
    "sha256": "0" * 64,
}
DATACOMP = IMG2DATASET | {"uid": "0123456789abcdef" * 2}
LAION = IMG2DATASET | {"LANGUAGE": "EN", "NSFW": "UNLIKELY", "similarity": 0.31}

LAYOUTS = {
    "img2dataset": (pair("000420031", "jpg", "a cat", IMG2DATASET), {"original_width": 640, "source_uid": None}),
    "DataComp": (pair("000000420031", "jpg", "a cat", DATACOMP), {"source_uid": DATACOMP["uid"]}),
    "CC3M, text alone": (pair("000420031", "jpg", "a cat"), {"original_width": None}),
    "CC12M, json alone": (pair("000420031", "jpg", None, IMG2DATASET), {"original_height": 480}),
    "YFCC, folders inside": (pair("ab/cd/000420031", "jpg", "a cat"), {"key": "ab/cd/000420031"}),
    "YFCC, png and ./": (pair("./000420031", "png", "a cat"), {"key": "000420031", "format": 1}),
    "webp, upper case": ([*pair("000420031", "webp", "a cat")[:1], ("000420031.TXT", b"a cat")], {"format": 2}),
    "jpeg": (pair("000420031", "jpeg", "a cat"), {"format": 0}),
    "further members": ([*pair("000420031", "jpg", "a cat"), ("000420031.gen.txt", b"a pet")], {"key": "000420031"}),
    "a class": ([*pair("000420031", "jpg", "a cat"), ("000420031.cls", b"3")], {"label": None}),
    "sizes that are none": (pair("000420031", "jpg", "a cat", {"original_width": "640"}), {"original_width": None}),
}


@pytest.mark.parametrize(("members", "facts"), LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("by", ["content", "headers"])
def test_published_layouts_are_indexed_as_they_come(tmp_path, members, facts, by):
    write_shard(tmp_path / "00042.tar", members)
    (row,) = index_shard(Storage.open(str(tmp_path)), "00042.tar", by).to_pylist()
    assert row["captions"][0]["text"] == "a cat"
    assert facts.items() <= row.items()


def test_the_keys_that_img2dataset_gives_are_kept_digit_by_digit(tmp_path):
    cases = json.loads((Path(__file__).parent.parent / "reference" / "tldr" / "cases.json").read_text())["cases"]
    (case,) = (c for c in cases if c["name"] == "img2dataset_key")
    numbers, keys = case["inputs"]["args"]["value"], case["expected"]["keys"]["value"]
    for (_, shard, _, width), key in zip(numbers, keys):
        name = f"{shard:0{width}d}.tar"
        write_shard(tmp_path / name, pair(key, "jpg", "a cat"))
        (row,) = index_shard(Storage.open(str(tmp_path)), name).to_pylist()
        assert row["key"] == key


LANGUAGES = {
    "lang": ({"lang": "de"}, [("original", "de", "a cat")]),
    "language": ({"language": "pt_BR"}, [("original", "pt-BR", "a cat")]),
    "LAION": (LAION, [("original", "en", "a cat")]),
    "no code": ({"lang": "English, mostly"}, [("original", "und", "a cat")]),
    "by slot": (
        {"lang": "en", "captions": {"long": "a cat on a mat", "keywords": ["cat", "mat"]}},
        [("original", "en", "a cat"), ("keywords", "en", "cat, mat"), ("long", "en", "a cat on a mat")],
    ),
    "keywords beside": ({"keywords": ["cat"]}, [("original", "und", "a cat"), ("keywords", "und", "cat")]),
    "by language": (
        {"captions": {"en": "a cat", "de": "eine Katze", "zh-Hant": ["貓", "一隻貓"]}},
        [
            ("original", "en", "a cat"),
            ("original", "de", "eine Katze"),
            ("original", "zh-Hant", "貓"),
            ("original", "zh-Hant", "一隻貓"),
        ],
    ),
    "by language and slot": (
        {"lang": "en", "captions": {"de": {"original": "eine Katze", "keywords": ["Katze", "Tier"]}}},
        [("original", "en", "a cat"), ("original", "de", "eine Katze"), ("keywords", "de", "Katze, Tier")],
    ),
    "not captions": (
        {"captions": {"name": "Cat", "de": 3, "fr": None, "it": {"long": 4}}},
        [("original", "und", "a cat")],
    ),
}


@pytest.mark.parametrize(("facts", "expected"), LANGUAGES.values(), ids=LANGUAGES)
def test_captions_have_the_slots_and_languages_that_the_json_states(tmp_path, facts, expected):
    write_shard(tmp_path / "0.tar", pair("a", "png", "a cat", facts))
    (row,) = index_shard(Storage.open(str(tmp_path)), "0.tar").to_pylist()
    assert [(c["slot"], c["lang"], c["text"]) for c in row["captions"]] == expected


def test_what_lies_beside_the_shards_is_passed_over_and_folders_are_searched(tmp_path):
    folder, store = tmp_path / "pool", open_store(tmp_path / "store")
    write_samples(folder / "part-0", [1, 2], shards=1)
    write_samples(folder / "part-1", [3, 4], shards=1)
    for name in ("part-0/00000.parquet", "part-0/00000_stats.json", "part-1/00000.npz", "sizes.json", "meta.tar.json"):
        (folder / name).write_bytes(b"not a shard")
    prepare(str(folder), store)
    marker = known(str(folder), store).marker
    assert [name for name, _ in marker["shards"]] == ["part-0/00000.tar", "part-1/00000.tar"]
    assert marker["rows"] == 4


def test_members_of_failed_downloads_are_counted_by_what_failed(tmp_path):
    failed = [
        (f"{n}.json", json.dumps({"status": status, "caption": "a cat"}).encode())
        for n, status in enumerate(("failed_to_download", "failed_to_resize", "failed_to_download", "\x1b[2J"))
    ]
    write_shard(tmp_path / "0.tar", [*failed, *sample("good", 1)])
    table = index_shard(Storage.open(str(tmp_path)), "0.tar")
    assert json.loads(table.schema.metadata[b"dropped"])["counts"] == {
        "no image: failed_to_download": 2,
        "no image: failed_to_resize": 1,
        "no image": 1,
    }
    assert table["key"].to_pylist() == ["good"]


def test_equal_pairs_and_equal_images_are_counted(tmp_path):
    folder, store = tmp_path / "pets", open_store(tmp_path / "store")
    write_samples(folder, [1, 1, 2, 1, 3], shards=2)
    write_shard(folder / "other.tar", sample("x", 3, "another caption"))
    prepare(str(folder), store)
    assert known(str(folder), store).marker["duplicates"] == {"pairs": 2, "images": 3}


def columns(store_path: Path, folder: Path, group: str) -> list[str]:
    import pyarrow.parquet as pq

    store = open_store(store_path)
    prepare(str(folder), store)
    return pq.read_schema(store.storage.local(f"{known(str(folder), store).place}/{group}.parquet")).names


def test_columns_that_no_sample_fills_are_left_out(tmp_path):
    write_samples(tmp_path / "plain", [1, 2])
    write_samples(tmp_path / "rich", [1, 2], facts=lambda n: {"original_width": 9} if n == 2 else {})
    assert columns(tmp_path / "store", tmp_path / "plain", "sizes") == ["width", "height"]
    assert columns(tmp_path / "store", tmp_path / "rich", "sizes") == ["width", "height", "original_width"]
