"""Shards on their way into the store: whole, once, resumed shard by shard; references that a worker cannot read."""

from __future__ import annotations

import json
import shutil
import socket

import pytest
from data_shards import open_store, places, run_stage, write_samples

from orchestrator.data import source
from orchestrator.data.dataset import Dataset
from orchestrator.errors import Cancelled, DataError, UserError
from orchestrator.io.storage import Storage
from orchestrator.stages.dataset.config import DatasetStage
from orchestrator.store.artifacts import Store


@pytest.fixture
def store(any_root) -> Store:
    return Store.open(any_root)


@pytest.fixture
def folder(tmp_path, store):
    """Three shards, indexed."""
    folder = write_samples(tmp_path / "pets", range(12), 3)
    source.prepare(str(folder), store)
    return folder


@pytest.fixture
def puts(monkeypatch) -> list[str]:
    """Names of the shards that are written to any store."""
    written = []
    original = Storage.put

    def put(self, key, data):
        if "/shards/" in key:
            written.append(key.rpartition("/")[2])
        original(self, key, data)

    monkeypatch.setattr(Storage, "put", put)
    return written


def test_copied_shards_are_the_originals_and_a_dataset_needs_no_others(folder, store, tmp_path):
    place = source.copy_in(str(folder), store)
    copies = {info.key: store.storage.get(info.key) for info in store.storage.list(f"{place}/shards")}
    assert copies == {f"{place}/shards/{path.name}": path.read_bytes() for path in folder.iterdir()}
    stage = DatasetStage.model_validate({"source": str(folder), "import": "copy"})
    sources = places(store, stage)
    shutil.rmtree(folder)
    handle, outcome = run_stage(store, stage, tmp_path, "dataset", "f1", sources=sources)
    assert len(Dataset.open(handle).read(range(12))) == 12
    assert outcome.summary["needs"] == [place]


def test_shards_in_an_object_store_are_copied_too(store, s3_root, tmp_path):
    remote = Storage.open(f"{s3_root}/shards")
    for path in write_samples(tmp_path / "pets", range(6), 2).iterdir():
        remote.put(path.name, path)
    source.prepare(remote.url, store)
    source.copy_in(remote.url, store)
    assert source.known(remote.url, store).copied(store)


def test_nothing_is_copied_twice(folder, store, puts):
    source.copy_in(str(folder), store)
    assert sorted(puts) == ["00000.tar", "00001.tar", "00002.tar"]
    source.copy_in(str(folder), store)
    assert len(puts) == 3


def test_an_interrupted_copy_goes_on_where_it_stopped(folder, store, puts, monkeypatch):
    monkeypatch.setattr(source, "COPIES", 1)
    told = []
    with pytest.raises(Cancelled):
        source.copy_in(str(folder), store, cancel=lambda: bool(told), on_shard=lambda *of: told.append(of))
    assert told == [(1, 3)]
    assert not source.known(str(folder), store).copied(store)
    source.copy_in(str(folder), store, on_shard=lambda *of: told.append(of))
    assert told[-1] == (3, 3)
    assert sorted(puts) == ["00000.tar", "00001.tar", "00002.tar"]


def test_a_shard_that_changes_while_it_is_copied_is_not_kept(folder, store, monkeypatch):
    original = Storage.put

    def put(self, key, data):
        original(self, key, data)
        if key.endswith("/00001.tar"):
            (folder / "00001.tar").write_bytes(b"other")

    monkeypatch.setattr(Storage, "put", put)
    with pytest.raises(DataError, match="submit again"):
        source.copy_in(str(folder), store)
    kept = [info.key.rpartition("/")[2] for info in store.storage.list("sources") if "/shards/" in info.key]
    assert "00001.tar" not in kept


def test_a_reference_that_the_worker_cannot_read_is_refused_naming_node_and_path(tmp_path):
    store = open_store(tmp_path / "store")
    folder = write_samples(tmp_path / "pets", range(4))
    source.prepare(str(folder), store)
    stage = DatasetStage.model_validate({"source": str(folder), "import": "reference"})
    sources = places(store, stage)
    shutil.move(folder, tmp_path / "elsewhere")
    with pytest.raises(UserError, match="cannot be read by the worker") as refused:
        run_stage(store, stage, tmp_path, "dataset", "f1", sources=sources)
    assert str(folder) in refused.value.message
    assert socket.gethostname() in refused.value.message
    assert "import: copy" in refused.value.remedy


def test_a_built_in_set_has_one_place_in_every_installation(store, monkeypatch, tmp_path):
    from orchestrator.data import sets

    before = source.locate("emoji").place
    elsewhere = shutil.copytree(sets.SETS["emoji"], tmp_path / "emoji")
    monkeypatch.setitem(sets.SETS, "emoji", elsewhere)
    assert source.locate("emoji").url == str(elsewhere)
    assert source.locate("emoji").place == before


def test_a_marker_says_nothing_of_the_machine_for_a_built_in_set(tmp_path):
    store = open_store(tmp_path / "store")
    source.prepare("emoji", store)
    found = source.known("emoji", store)
    assert found.builtin == "emoji"
    assert str(tmp_path.parents[0]) not in json.dumps(dict(found.marker))
    assert "/sets/" not in json.dumps(dict(found.marker))
