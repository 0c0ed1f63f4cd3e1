"""Benchmark sets by path: what identifies them, what is read of them, and how broken ones are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from data_benchmark import captioned, classes, labelled, picture, write_cifar10, write_set
from data_shards import open_store

from orchestrator.data import source
from orchestrator.data.benchmark import SCHEME, BenchmarkSet, identify, locate, prepare
from orchestrator.errors import Cancelled, DataError, UserError
from orchestrator.io.storage import Storage


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "store")


def read(folder: Path, store, split="test") -> BenchmarkSet:
    name = f"{SCHEME}{folder}/{split}"
    prepare(name, store)
    return BenchmarkSet(locate(name).place, store)


def test_a_set_is_unknown_until_it_is_read_and_then_known_by_its_content(tmp_path, store):
    name = f"{SCHEME}{write_cifar10(tmp_path)}/test"
    assert source.identify(name, store) is None
    told = []
    digest = source.prepare(name, store, on_shard=lambda *progress: told.append(progress))
    assert told == [(1, 2), (2, 2)]
    found = source.identify(name, store)
    assert found.digest == digest
    assert found.place == locate(name).place
    assert source.prepare(name, store, on_shard=lambda *progress: pytest.fail("read again")) == digest


def test_the_same_samples_elsewhere_in_other_shards_are_the_same_data(tmp_path, store):
    samples = [labelled(n, n % 3) for n in range(7)]
    one = write_set(tmp_path / "a", samples, classes(range(3)), shards=2)
    other = write_set(tmp_path / "elsewhere" / "b", samples, classes(range(3)), shards=3)
    assert prepare(f"{SCHEME}{one}/test", store) == prepare(f"{SCHEME}{other}/test", store)


def test_the_same_set_on_s3_is_the_same_data(tmp_path, store, s3_root):
    folder = write_cifar10(tmp_path)
    here, there = Storage.open(str(folder)), Storage.open(s3_root)
    for info in here.list(""):
        there.put(f"sets/{info.key}", here.get(info.key))
    name = f"{SCHEME}{s3_root}/sets/test"
    assert prepare(name, store) == prepare(f"{SCHEME}{folder}/test", store)
    local, remote = read(folder, store), BenchmarkSet(locate(name).place, store)
    assert remote.images([3, 17, 4]) == local.images([3, 17, 4])


@pytest.mark.parametrize(
    "changed",
    [
        {"samples": [labelled(n, n % 3) for n in (0, 1, 2, 3, 5, 4)]},
        {"samples": [labelled(n, 2 - n % 3) for n in range(6)]},
        {"samples": [labelled(n, n % 3, kind="webp") for n in range(6)]},
        {"texts": classes(range(3), ["{c}"])},
        {"texts": classes((0, 1, 4))},
    ],
    ids=["order", "classes", "images", "templates", "class names"],
)
def test_other_samples_or_texts_are_other_data(tmp_path, store, changed):
    whole = {"samples": [labelled(n, n % 3) for n in range(6)], "texts": classes(range(3))}
    one = write_set(tmp_path / "a", **whole)
    other = write_set(tmp_path / "b", **(whole | changed))
    assert prepare(f"{SCHEME}{one}/test", store) != prepare(f"{SCHEME}{other}/test", store)


def test_samples_are_read_back_as_they_were_written(tmp_path, store):
    kinds = ("png", "webp", "jpeg", "png", "png")
    samples = [labelled(n, n % 3, facts=[n, 7], kind=kind) for n, kind in enumerate(kinds)]
    data = read(write_set(tmp_path / "set", samples, classes(range(3))), store)
    assert (data.kind, len(data), data.classes[1], data.templates) == (
        "classification",
        5,
        "c001",
        ["{c}", "a view of {c}"],
    )
    np.testing.assert_array_equal(data.labels, [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(data.facts, [[n, 7] for n in range(5)])
    rows = [4, 0, 3, 2]
    assert data.images(rows) == [samples[row][kinds[row]] for row in rows]


def test_captions_are_lines_and_empty_ones_are_none(tmp_path, store):
    data = read(
        write_set(tmp_path / "set", [captioned(0, "one", "", "two "), captioned(1, "drei\r")], shards=1), store
    )
    assert data.captions == [["one", "two"], ["drei"]]
    np.testing.assert_array_equal(data.labels, [-1, -1])
    assert data.facts is None


def test_another_split_is_another_set(tmp_path, store):
    folder = write_cifar10(tmp_path)
    shutil.copytree(folder / "test", folder / "val")
    (folder / "val" / "nshards.txt").write_text("1")
    assert len(read(folder, store)) == 18
    assert len(read(folder, store, "val")) == 9


def test_a_set_that_is_not_there_can_be_planned_and_not_read(tmp_path, store):
    name = f"{SCHEME}{tmp_path}/wds_mnist_test/test"
    assert identify(name, store) is None
    with pytest.raises(UserError, match=r"no benchmark set at .*wds_mnist_test/test") as refused:
        prepare(name, store)
    assert "docs/evaluation.md" in refused.value.remedy


def cut(folder: Path) -> None:
    shard = folder / "test" / "1.tar"
    shard.write_bytes(shard.read_bytes()[:700])


def overwrite(folder: Path) -> None:
    (folder / "test" / "0.tar").write_bytes(b"no archive" * 300)


BROKEN = {
    "a shard is missing": (lambda f: (f / "test" / "1.tar").unlink(), "1 of the 2 shards .* first is test/1.tar"),
    "no number of shards": (lambda f: (f / "test" / "nshards.txt").write_text("many"), "number of shards but 'many'"),
    "a shard is cut": (cut, r"1\.tar of .* is damaged"),
    "a shard is no archive": (overwrite, r"0\.tar of .* is damaged"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_damaged_set_is_refused_by_name_and_nothing_is_kept(tmp_path, store, case):
    folder = write_cifar10(tmp_path)
    damage, message = BROKEN[case]
    damage(folder)
    with pytest.raises(DataError, match=message):
        prepare(f"{SCHEME}{folder}/test", store)
    assert list(store.storage.list("sources")) == []


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"cls": b"1"}, "'s000'.* no image"),
        (picture(0) | {"cls": b"one"}, "'s000'.*'one'|'s000'.*invalid literal"),
        (picture(0) | {"npy": b"facts"}, "damaged at sample 's000'"),
        (picture(0) | {"txt": b"\xff"}, "damaged at sample 's000'"),
    ],
    ids=["no image", "class is no number", "facts are no array", "captions are not UTF-8"],
)
def test_a_sample_that_cannot_be_read_is_refused_by_name(tmp_path, store, sample, message):
    folder = write_set(tmp_path / "set", [sample], shards=1)
    with pytest.raises(DataError, match=message):
        prepare(f"{SCHEME}{folder}/test", store)


def test_a_set_that_changed_since_is_refused_where_it_is_used(tmp_path, store):
    folder = write_cifar10(tmp_path)
    name = f"{SCHEME}{folder}/test"
    prepare(name, store)
    place = locate(name).place
    (folder / "test" / "1.tar").unlink()
    with pytest.raises(DataError, match=r"test/1\.tar is gone"):
        BenchmarkSet(place, store)


def test_reading_stops_when_asked_to(tmp_path, store):
    with pytest.raises(Cancelled, match="0 of 2 shards"):
        prepare(f"{SCHEME}{write_cifar10(tmp_path)}/test", store, cancel=lambda: True)
