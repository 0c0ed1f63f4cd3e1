"""Verification: every byte is hashed; what is not as it was published is named with the stage and the way out."""

from __future__ import annotations

import threading

import pytest
from store_made import demo

from orchestrator.store.artifacts import Store
from orchestrator.store.checkpoints import CheckpointStore
from orchestrator.store.verify import verify


@pytest.fixture
def store(any_root) -> Store:
    return Store.open(any_root)


def test_a_sound_store_is_hashed_whole(store):
    made = demo(store)
    CheckpointStore(store.storage, "c" * 64, 1).save(64, {"state": b"x" * 1000})
    read, lock = [0], threading.Lock()

    def count(num_bytes: int) -> None:
        with lock:
            read[0] += num_bytes

    checked = verify(store, count)
    assert checked.problems == ()
    assert checked.files == len(made) + 1
    assert read[0] == checked.size == sum(m.size for m in made.values()) + 1000


@pytest.mark.parametrize("what", ["flipped", "cut", "missing", "unexpected", "manifest", "checkpoint", "marker"])
def test_what_is_not_as_published_is_named_with_the_way_out(store, what):
    small = demo(store)["small"]
    key = f"{small.prefix}/data.bin"
    data = store.storage.get(key)
    ref = CheckpointStore(store.storage, "c" * 64, 1).save(64, {"state": b"x"})
    storage = store.storage
    if what == "flipped":
        storage.put(key, b"X" + data[1:])
    elif what == "cut":
        storage.put(key, data[:-1])
    elif what == "missing":
        storage.delete(key)
    elif what == "unexpected":
        storage.put(f"{small.prefix}/virus.exe", b"?")
    elif what == "manifest":
        storage.put(f"distill/{small.fingerprint}/manifest.json", b"{")
    elif what == "checkpoint":
        storage.put(f"{ref.prefix}/state", b"y")
    else:
        storage.put(f"{ref.prefix}/complete.json", b"{}")
    (problem,) = verify(store).problems
    says = {
        "flipped": "does not have the content",
        "cut": f"has {len(data) - 1} bytes instead of {len(data)}",
        "missing": "is missing",
        "unexpected": "is not in the manifest",
        "manifest": "not a readable manifest",
        "checkpoint": "does not have the content",
        "marker": "not a readable marker",
    }
    assert says[what] in problem.how
    assert "delete" in problem.remedy
    if what in ("flipped", "cut", "missing", "unexpected"):
        assert (problem.stage, problem.run) == ("small", small.run)
    assert [info.key for info in storage.list("")], "nothing was deleted"


def test_files_that_are_collected_while_they_are_read_are_no_problem(store, monkeypatch):
    small = demo(store)["small"]
    real = type(store.storage).stream

    def stream(self, key):
        if key.startswith(small.prefix):
            self.delete(f"distill/{small.fingerprint}/manifest.json")
            self.delete(key)
        return real(self, key)

    monkeypatch.setattr(type(store.storage), "stream", stream)
    assert verify(store).problems == ()
