"""How `source:` strings are understood, and how data become known by content."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from data_shards import open_store, write_samples, write_shard

from orchestrator.data import index, location, merge, source
from orchestrator.errors import Cancelled, DataError, UserError
from orchestrator.io.storage import Storage


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("x/{0..2}.tar", ["x/0.tar", "x/1.tar", "x/2.tar"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{000..001}-{8..10}", ["000-8", "000-9", "000-10", "001-8", "001-9", "001-10"]),
    ],
)
def test_ranges_expand_with_the_padding_of_their_bounds(pattern, expected):
    assert location.expand(pattern) == expected


@pytest.mark.parametrize("pattern", ["{a..b}.tar", "{3..1}.tar", "{1,2}.tar", "{}.tar"])
def test_a_malformed_range_is_refused_and_the_right_form_said(pattern):
    with pytest.raises(UserError, match=r"00000\.\.01242"):
        location.expand(pattern)


def test_sources_are_found_as_folder_pattern_single_shard_and_built_in_name(tmp_path):
    folder = write_samples(tmp_path / "cats", range(6), shards=3)
    whole = location.locate(str(folder))
    assert (whole.name, [s.key for s in whole.shards]) == ("cats", ["00000.tar", "00001.tar", "00002.tar"])
    some = location.locate(f"{folder}/{{00001..00002}}.tar")
    assert (some.name, [s.key for s in some.shards]) == ("cats", ["00001.tar", "00002.tar"])
    assert [s.key for s in location.locate(f"{folder}/00001.tar").shards] == ["00001.tar"]
    assert location.locate("emoji").builtin


@pytest.mark.parametrize("wrong", ["emojy", "/no/such/folder", "/no/such/{0..1}.tar"])
def test_an_unknown_source_is_refused_with_what_is_allowed(wrong):
    with pytest.raises(UserError, match="emoji"):
        location.locate(wrong)


def test_missing_shards_of_a_pattern_are_counted_and_named(tmp_path):
    write_samples(tmp_path, range(4), shards=2)
    with pytest.raises(UserError, match=r"2 of 4 shards .* first is 00002\.tar"):
        location.locate(f"{tmp_path}/{{00000..00003}}.tar")


def test_a_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no \.tar shards"):
        location.locate(str(tmp_path))


def test_data_are_unknown_until_prepared_and_then_known_without_reading_them(tmp_path):
    folder, store = write_samples(tmp_path / "data", range(6)), open_store(tmp_path / "store")
    assert source.identify(str(folder), store) is None
    digest = source.prepare(str(folder), store)
    assert source.identify(str(folder), store).digest == digest == source.prepare(str(folder), store)
    assert [s.key for s in store.storage.list("sources") if "parts" in s.key] == []


def test_a_rewritten_or_added_shard_makes_the_data_unknown_again(tmp_path):
    folder, store = write_samples(tmp_path / "data", range(6)), open_store(tmp_path / "store")
    before = source.prepare(str(folder), store)
    write_samples(folder, [*range(5), 7])
    assert source.identify(str(folder), store) is None
    assert source.prepare(str(folder), store) != before


def test_the_same_shards_in_an_object_store_have_the_same_digest(tmp_path):
    folder, store = write_samples(tmp_path / "data", range(6)), open_store(tmp_path / "store")
    remote = Storage.open("memory://source-test/data")
    for path in folder.iterdir():
        remote.put(path.name, path)
    assert source.prepare("memory://source-test/data", store) == source.prepare(str(folder), store)


def test_a_cancelled_preparation_goes_on_where_it_stopped(tmp_path, monkeypatch):
    folder, store = write_samples(tmp_path / "data", range(9), shards=3), open_store(tmp_path / "store")
    done = []
    with pytest.raises(Cancelled):
        source.prepare(str(folder), store, cancel=lambda: len(done) == 2, on_shard=lambda *of: done.append(of))
    assert done == [(1, 3), (2, 3)]
    indexed = []
    original = source._write_part
    monkeypatch.setattr(
        source, "_write_part", lambda s, shard, *rest: (indexed.append(shard.key), original(s, shard, *rest))
    )
    assert source.prepare(str(folder), store) == source.prepare(str(folder), open_store(tmp_path / "fresh"))
    assert indexed[:1] == ["00002.tar"]


def test_data_without_a_usable_sample_are_refused_with_the_reasons(tmp_path):
    write_shard(tmp_path / "data" / "0.tar", [("a.txt", b"text"), ("b.txt", b"text")])
    with pytest.raises(DataError, match="no image: 2"):
        source.prepare(str(tmp_path / "data"), open_store(tmp_path / "store"))


def test_importing_sources_loads_nothing_heavy():
    code = (
        "import sys, orchestrator.data.source, orchestrator.stages.dataset.config, orchestrator.stages.curate.config;"
    )
    code += "print([m for m in ('torch', 'ray', 'pyarrow', 'numpy', 'PIL') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.mark.parametrize("place", ["local", "s3"])
def test_of_several_that_index_a_source_at_once_one_does_it(place, tmp_path, monkeypatch, request):
    root = str(tmp_path / "store") if place == "local" else request.getfixturevalue("s3_root")
    folder = str(write_samples(tmp_path / "pets", range(12), shards=3))
    indexed, barrier, digests = [], threading.Barrier(4), []
    index_shard = index.index_shard
    monkeypatch.setattr(index, "index_shard", lambda *args: indexed.append(args[1]) or index_shard(*args))

    def prepare() -> None:
        barrier.wait()
        digests.append(source.prepare(folder, open_store(root)))

    threads = [threading.Thread(target=prepare) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 4
    assert len(set(digests)) == 1
    assert sorted(indexed) == ["00000.tar", "00001.tar", "00002.tar"]


def test_one_that_was_overtaken_while_it_indexed_takes_the_others_result(tmp_path, monkeypatch):
    """Its successor has finished and deleted the parts that it still means to read."""
    folder, store = str(write_samples(tmp_path / "pets", range(12), shards=3)), open_store(tmp_path / "store")
    original, digests = merge.merge, []

    def overtaken(parts, out, by):
        if not digests:
            digests.append("")
            place = location.locate(folder).place
            lease = f"leases/{place.rpartition('/')[2]}"
            store.storage.put(f"{lease}/2", store.storage.get(f"{lease}/1").replace(b"false", b"true"))
            digests[0] = source.prepare(folder, open_store(tmp_path / "store"))
        return original(parts, out, by)

    monkeypatch.setattr(merge, "merge", overtaken)
    assert source.prepare(folder, store) == digests[0] != ""


@pytest.mark.parametrize("change", ["gone", "shorter", "rewritten"])
def test_a_shard_that_changes_while_it_is_indexed_is_refused(change, tmp_path, monkeypatch):
    folder, store = write_samples(tmp_path / "pets", range(12), shards=2), open_store(tmp_path / "store")
    index_shard, path = index.index_shard, folder / "00001.tar"

    def changing(storage, key, by):
        if key == path.name and change == "gone":
            path.unlink()
        elif key == path.name:
            data = path.read_bytes()
            path.write_bytes(data[: len(data) // 2] if change == "shorter" else data)
        return index_shard(storage, key, by)

    monkeypatch.setattr(index, "index_shard", changing)
    with pytest.raises(DataError, match="changed while"):
        source.prepare(str(folder), store)
