"""What indexing finds in shards, what it leaves out and why, and by what it knows samples and data sets."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from functools import partial
from pathlib import Path

import pytest
from data_shards import image, open_store, sample, write_samples, write_shard

from orchestrator.data.index import index_shard, sample_uid
from orchestrator.data.merge import merge
from orchestrator.data.source import known, prepare
from orchestrator.io.storage import Storage


def dropped(path: Path) -> dict[str, int]:
    table = index_shard(Storage.open(str(path.parent)), path.name)
    return json.loads(table.schema.metadata[b"dropped"])["counts"]


def rows(path: Path) -> list[dict]:
    return index_shard(Storage.open(str(path.parent)), path.name).to_pylist()


def digest_of(folder: Path, store_path: Path) -> str:
    return prepare(str(folder), open_store(store_path))


def uids(folder: Path, store_path: Path) -> list[bytes]:
    import pyarrow.parquet as pq

    store = open_store(store_path)
    prepare(str(folder), store)
    place = known(str(folder), store).place
    return pq.read_table(store.storage.local(f"{place}/index.parquet"))["uid"].to_pylist()


def test_a_sample_has_its_members_places_size_captions_and_labels(tmp_path):
    facts = {"concept": "cat", "style": "noto", "uid": "abc", "label": 3, "captions": {"keywords": ["pet", "paw"]}}
    path = write_shard(
        tmp_path / "0.tar", [("folder/a.b.txt", b"not mine"), *sample("folder/k", 1, " a cat\n", facts)]
    )
    found = rows(path)[-1]
    data = path.read_bytes()
    assert data[found["image_offset"] :][: found["image_bytes"]] == image(1)
    assert data[found["text_offset"] :][: found["text_bytes"]] == b" a cat\n"
    assert found["captions"] == [
        {"slot": "original", "lang": "und", "text": "a cat"},
        {"slot": "keywords", "lang": "und", "text": "pet, paw"},
    ]
    expected = {
        "key": "folder/k",
        "source_uid": "abc",
        "concept": "cat",
        "style": "noto",
        "label": "3",
        "width": 8,
        "height": 8,
    }
    assert expected.items() <= found.items()
    assert dropped(path) == {"no image": 1}


def test_the_json_caption_serves_where_there_is_no_text_member(tmp_path):
    members = [("0.webp", image(0, kind="WEBP")), ("0.json", b'{"caption": "from json"}')]
    (found,) = rows(write_shard(tmp_path / "0.tar", members))
    assert found["captions"][0]["text"] == "from json"


def test_uid_is_the_stated_hash_of_image_caption_and_count(tmp_path):
    write_samples(tmp_path / "data", [4, 4], shards=2)
    write_shard(tmp_path / "data" / "00002.tar", sample("x", 4))
    parts = hashlib.sha256(image(4)).digest(), hashlib.sha256(b"thing number 4").digest()
    expected = [hashlib.sha256(parts[0] + parts[1] + n.to_bytes(8, "little")).digest()[:16] for n in range(3)]
    assert uids(tmp_path / "data", tmp_path / "store") == expected
    assert expected[1] == sample_uid(*parts, 1)


def test_uid_boundaries_are_unambiguous():
    assert sample_uid(b"a" * 32, b"b" * 32, 0) != sample_uid(b"b" * 32, b"a" * 32, 0)


@pytest.mark.parametrize("shards", [1, 3])
def test_content_digest_does_not_depend_on_order_shards_or_place(tmp_path, shards):
    numbers = [1, 2, 3, 4, 5, 5, 6]
    first = digest_of(write_samples(tmp_path / "a", numbers, 2), tmp_path / "store")
    other = digest_of(write_samples(tmp_path / "b", numbers[::-1], shards), tmp_path / "other")
    assert first == other


@pytest.mark.parametrize(
    "facts", [lambda n: {"concept": "other"} if n == 3 else None, lambda n: {"anything": n} if n == 3 else None]
)
def test_content_digest_covers_what_the_json_says(tmp_path, facts):
    plain = digest_of(write_samples(tmp_path / "a", [1, 2, 3]), tmp_path / "store")
    assert plain != digest_of(write_samples(tmp_path / "b", [1, 2, 3], facts=facts), tmp_path / "store")
    assert plain != digest_of(write_samples(tmp_path / "c", [1, 2, 3, 3]), tmp_path / "store")


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("a.txt", b"text only")], "no image"),
        ([("a.png", image(0))], "no caption"),
        ([("a.png", image(0)), ("a.txt", b"  \n")], "no caption"),
        ([("a.png", image(0)), ("a.txt", b"\xff\xfe")], "caption is not UTF-8"),
        ([("a.png", image(0)), ("a.txt", image(1))], "caption is not UTF-8"),
        ([("a.png", image(0)), ("a.json", b'{"caption": 17}')], "caption is not text"),
        ([("a.png", image(0)), ("a.json", b'{"caption": ["a"]}')], "caption is not text"),
        ([("a.png", image(0)), ("a.json", b'{"caption": null}')], "no caption"),
        ([("a.png", image(0)), ("a.txt", b"t"), ("a.json", b"[" * 100_000)], "json cannot be read"),
        ([("a.png", image(0)), ("a.txt", b"t"), ("a.json", b"\xff")], "json cannot be read"),
        ([("a.png", b""), ("a.txt", b"t")], "not an image"),
        ([("a.png", image(0)), ("a.txt", b"t"), ("a.json", b"{")], "json cannot be read"),
        ([("a.png", image(0)), ("a.txt", b"t"), ("a.json", b"[1]")], "json cannot be read"),
        ([("a.png", image(0)), ("a.json", b'{"caption": "\\ud800"}')], "caption is not UTF-8"),
        ([("a.png", b"no picture"), ("a.txt", b"t")], "not an image"),
        ([("a.png", image(0)), ("a.png", image(1)), ("a.txt", b"t")], "two members with one suffix"),
        ([("../a.png", image(0))], "hostile member name"),
        ([("/etc/a.png", image(0))], "hostile member name"),
        ([("x\\a.png", image(0))], "hostile member name"),
        ([("x\na.png", image(0))], "hostile member name"),
    ],
)
def test_bad_samples_are_counted_with_a_reason_and_the_others_kept(tmp_path, members, reason):
    path = write_shard(tmp_path / "0.tar", [*sample("first", 1), *members, *sample("last", 2)])
    assert dropped(path) == {reason: 1}
    assert [row["key"] for row in rows(path)] == ["first", "last"]


def test_a_key_that_comes_back_is_counted_and_its_first_run_kept(tmp_path):
    path = write_shard(tmp_path / "0.tar", [*sample("a", 1), *sample("b", 2), *sample("a", 3)])
    assert dropped(path) == {"key comes back later in the shard": 1}
    assert [row["key"] for row in rows(path)] == ["a", "b"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_never_followed(tmp_path, kind):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, content in sample("good", 1):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        info = tarfile.TarInfo("bad.png")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    assert dropped(tmp_path / "0.tar") == {"not a regular file": 1}
    assert len(rows(tmp_path / "0.tar")) == 1


DAMAGE = {"shard is truncated": 1, "last sample before the damage": 1}


@pytest.mark.parametrize("keep", [512 * 4 + 100, 512 * 5 + 10, 512 * 6 + 100, 512 * 7 + 5, 512 * 8])
def test_of_a_truncated_shard_only_samples_that_are_surely_whole_are_kept(tmp_path, keep):
    path = write_shard(tmp_path / "0.tar", [*sample("a", 1), *sample("b", 2), *sample("c", 3)])
    path.write_bytes(path.read_bytes()[:keep])
    assert dropped(path) == DAMAGE
    assert len(rows(path)) == (0 if keep < 512 * 6 else 1)


def test_what_comes_after_a_damaged_header_is_counted_as_lost(tmp_path):
    path = write_shard(tmp_path / "0.tar", [*sample("a", 1), *sample("b", 2), *sample("c", 3)])
    data = bytearray(path.read_bytes())
    data[512 * 8 : 512 * 9] = b"x" * 512
    path.write_bytes(data)
    assert dropped(path) == DAMAGE
    assert [row["key"] for row in rows(path)] == ["a"]


@pytest.mark.parametrize("content", [b"", b"not a tar" * 100])
def test_what_is_no_tar_is_counted(tmp_path, content):
    (tmp_path / "0.tar").write_bytes(content)
    assert dropped(tmp_path / "0.tar") == {"shard is not a tar archive": 1}


@pytest.mark.parametrize("damage", [b"", 512 * 9 + 100], ids=["empty", "truncated"])
def test_what_a_damaged_shard_lacks_is_estimated_from_the_whole_ones(tmp_path, damage):
    folder = write_samples(tmp_path / "pets", range(30), shards=3)
    shard = folder / "00001.tar"
    shard.write_bytes(shard.read_bytes()[:damage] if damage else b"")
    facts = merge([partial(index_shard, Storage.open(str(folder)), f"0000{n}.tar") for n in range(3)], tmp_path)
    counts = facts["dropped"]["counts"]
    assert facts["rows"] + sum(counts.values()) == 30
    assert facts["dropped"]["examples"]["lost with a damaged shard (estimated)"] == ["00001.tar"]


def test_memory_that_runs_out_is_no_bad_sample(tmp_path, monkeypatch):
    path = write_shard(tmp_path / "0.tar", sample("a", 1))

    def no_memory(*args, **options):
        raise MemoryError

    monkeypatch.setattr("PIL.Image.open", no_memory)
    with pytest.raises(MemoryError):
        rows(path)


def test_a_shard_in_an_object_store_is_indexed_as_on_disk(tmp_path):
    path = write_shard(
        tmp_path / "0.tar", [*sample("a", 1), *sample("b", 2), ("c.txt", b"x" * 20_000), *sample("d", 3)]
    )
    remote = Storage.open("memory://index-test")
    remote.put("deep/0.tar", path)
    there = index_shard(remote, "deep/0.tar")
    assert there.to_pylist() == rows(path)
