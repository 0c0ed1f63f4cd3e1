"""Indexing by headers: few bytes of a large pool, the same places and captions, another identity that says so."""

from __future__ import annotations

import json
import random

import pytest
from data_shards import image, open_store, run_stage, sample, write_samples, write_shard
from s3_proxy import proxied

from orchestrator.data import source
from orchestrator.data.index import index_shard, stand_in
from orchestrator.io.storage import Storage
from orchestrator.stages.dataset.config import DatasetStage


def photo(key: str, number: int, size: int = 100_000, **facts):
    """A sample with an image of about so many bytes, and img2dataset's json."""
    noise = random.Random(number).randbytes(size)
    facts = {"caption": f"thing {number}", "width": 640, "height": 480, **facts}
    members = [(f"{key}.png", image(number) + noise), (f"{key}.json", json.dumps(facts).encode())]
    return [*members, (f"{key}.txt", f"thing {number}".encode())]


def write_photos(folder, numbers=range(60), shards=2, **facts):
    for shard in range(shards):
        members = [m for n in numbers[shard::shards] for m in photo(f"{n:04d}", n, **facts)]
        write_shard(folder / f"{shard:05d}.tar", members)
    return folder


def marker(location, store) -> dict:
    source.prepare(location, store)
    return dict(source.known(location, store).marker)


def test_of_a_pool_on_s3_a_small_share_is_read_and_the_rest_is_the_same(tmp_path, s3_root, s3_env, monkeypatch):
    folder, store = write_photos(tmp_path / "pool"), open_store(tmp_path / "store")
    size = sum(path.stat().st_size for path in folder.iterdir())
    with proxied(s3_env.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        remote = Storage.open(f"{s3_root}/pool")
        for path in folder.iterdir():
            remote.put(path.name, path)
        before = proxy.count("^GET .*/pool/")
        there = marker(f"headers:{s3_root}/pool", store)
        requests = proxy.count("^GET .*/pool/") - before
    assert there["read"]["bytes"] < 0.15 * size
    assert there["read"]["requests"] == requests <= 60 + 4
    here = marker(f"headers:{folder}", store)
    assert there["content_digest"] == here["content_digest"]
    by_content, by_headers = (
        index_shard(Storage.open(str(folder)), "00000.tar", by).to_pylist() for by in ("content", "headers")
    )
    for row, other in zip(by_content, by_headers, strict=True):
        same = row.keys() - {"uid", "image_sha256", "sample_digest", "width", "height"}
        assert {name: row[name] for name in same} == {name: other[name] for name in same}
        assert (other["width"], other["height"]) == (640, 480)
        assert row["uid"] != other["uid"]


def test_it_is_another_identity_and_the_digest_says_so(tmp_path):
    folder, store = write_samples(tmp_path / "pets", range(6)), open_store(tmp_path / "store")
    content, headers = source.prepare(str(folder), store), source.prepare(f"headers:{folder}", store)
    assert headers.startswith("headers:")
    assert headers.removeprefix("headers:") != content
    assert source.known(f"headers:{folder}", store).place != source.known(str(folder), store).place
    assert DatasetStage(source=str(folder), index="headers").external_sources() == [f"headers:{folder}"]


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ([("a.png", b"y" * 100), ("a.txt", b"t")], True),
        ([("a.png", b"x" * 101), ("a.txt", b"t")], False),
        ([("b.png", b"x" * 100), ("b.txt", b"t")], False),
        ([("a.png", b"x" * 100), ("a.txt", b"u")], False),
        ([("a.png", b"x" * 100), ("a.txt", b"t"), ("a.json", b"{}")], False),
        ([("a.png", b"x" * 100), ("a.txt", b"t"), ("a.cls", b"1")], False),
    ],
)
def test_names_sizes_and_texts_are_what_is_known(tmp_path, changed, same):
    store = open_store(tmp_path / "store")
    write_shard(tmp_path / "a" / "0.tar", [("a.png", b"x" * 100), ("a.txt", b"t")])
    write_shard(tmp_path / "b" / "other.tar", changed)
    digests = [source.prepare(f"headers:{tmp_path / name}", store) for name in "ab"]
    assert (digests[0] == digests[1]) == same


def test_it_does_not_depend_on_order_or_shards(tmp_path):
    members = [[*sample(f"{n:02d}", n)] for n in range(8)]
    for name, order, shards in (("a", range(8), 2), ("b", range(7, -1, -1), 3)):
        for shard in range(shards):
            dealt = [m for n in list(order)[shard::shards] for m in members[n]]
            write_shard(tmp_path / name / f"{shard}.tar", dealt)
    digests = {source.prepare(f"headers:{tmp_path / name}", open_store(tmp_path / "store")) for name in "ab"}
    assert len(digests) == 1


def test_sizes_are_unknown_where_the_json_says_nothing_and_equal_images_are_not_counted(tmp_path):
    folder, store = write_samples(tmp_path / "pets", [1, 1, 2]), open_store(tmp_path / "store")
    facts = marker(f"headers:{folder}", store)
    assert facts["duplicates"]["images"] is None
    place = source.known(f"headers:{folder}", store).place
    tables = {name: read(store, f"{place}/{name}.parquet") for name in ("index", "sizes")}
    assert tables["sizes"]["width"].null_count == 3
    assert "image_digest" not in tables["index"].column_names


def read(store, key):
    import pyarrow.parquet as pq

    return pq.read_table(store.storage.local(key))


def test_a_stand_in_is_no_digest_of_an_image():
    assert stand_in("a.png", 3) != stand_in("a.png", 4)
    assert len(stand_in("a.png", 3)) == 32


def test_an_empty_image_is_left_out(tmp_path):
    path = write_shard(tmp_path / "0.tar", [("a.png", b""), ("a.txt", b"t"), *sample("b", 1)])
    table = index_shard(Storage.open(str(path.parent)), path.name, "headers")
    assert table["key"].to_pylist() == ["b"]
    assert json.loads(table.schema.metadata[b"dropped"])["counts"] == {"not an image": 1}


def test_the_artifact_says_that_it_is_known_by_headers(tmp_path):
    folder, store = write_samples(tmp_path / "pets", range(6)), open_store(tmp_path / "store")
    stage = DatasetStage(source=str(folder), index="headers")
    source.prepare(stage.external_sources()[0], store)
    handle, outcome = run_stage(store, stage, tmp_path, "dataset", "f1")
    assert outcome.summary["indexed_by"] == "headers"
    description = json.loads(handle.read("dataset.json"))
    assert description["indexed_by"] == "headers"
    assert description["content_digest"].startswith("headers:")
