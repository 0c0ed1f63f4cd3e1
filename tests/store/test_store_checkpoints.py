"""Checkpoints: complete or absent, the highest of any generation, each file verified."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import textwrap

import pytest

from orchestrator.errors import OrchError
from orchestrator.io.storage import Storage
from orchestrator.store.checkpoints import CheckpointStore


@pytest.fixture
def storage(any_root) -> Storage:
    return Storage.open(any_root)


def place(storage: Storage, generation: int = 1) -> CheckpointStore:
    return CheckpointStore(storage, "f", generation)


def found(store: CheckpointStore) -> tuple[int, int] | None:
    latest = store.latest()
    return None if latest is None else (latest.samples, latest.generation)


def test_what_was_saved_is_read(storage, tmp_path):
    (tmp_path / "weights").write_bytes(b"w" * 1000)
    store = place(storage)
    assert store.latest() is None
    ref = store.save(64, {"weights": tmp_path / "weights", "state.json": b"{}"})
    later = pickle.loads(pickle.dumps(place(storage, 2)))
    assert later.latest() == ref
    assert later.files(ref) == {"state.json": 2, "weights": 1000}
    assert later.read(ref, "weights") == b"w" * 1000
    with pytest.raises(KeyError):
        later.read(ref, "other")


LATEST = {
    "most samples": ([(1, 64), (1, 128)], (128, 1)),
    "as numbers": ([(1, 96), (1, 1024)], (1024, 1)),
    "of an earlier generation": ([(1, 128), (2, 64)], (128, 1)),
    "newer generation wins a tie": ([(1, 64), (2, 64)], (64, 2)),
    "generations as numbers": ([(9, 64), (10, 64)], (64, 10)),
    "in any order": ([(3, 0), (1, 32)], (32, 1)),
}


@pytest.mark.parametrize(("saved", "expected"), LATEST.values(), ids=LATEST)
def test_latest(storage, saved, expected):
    for generation, samples in saved:
        place(storage, generation).save(samples, {"x": b""})
    assert found(place(storage, 99)) == expected


class Killed(BaseException):
    """Nothing that the code could tidy up after."""


@pytest.mark.parametrize("how", [Killed(), OrchError("disk full")], ids=["killed", "full"])
def test_a_half_written_checkpoint_does_not_exist(storage, how, monkeypatch):
    store = place(storage)
    store.save(64, {"x": b"1"})
    put = Storage.put

    def failing(self, key, data, *args):
        if key.endswith("b"):
            raise how
        put(self, key, data, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "put", failing)
        with pytest.raises(type(how)):
            store.save(128, {"a": b"1", "b": b"2"})
    left = storage.head("work/f/1/ckpt-128/a") is not None
    assert left == isinstance(how, Killed), "what a full disk has no room for must not fill it"
    assert found(store) == (64, 1)
    store.save(128, {"a": b"1", "b": b"2"})
    assert found(store) == (128, 1)


def test_a_process_killed_while_it_saves_leaves_the_checkpoint_before(tmp_path):
    script = """
        import os, signal, sys
        from orchestrator.io.storage import Storage
        from orchestrator.store.checkpoints import CheckpointStore
        store = CheckpointStore(Storage.open(sys.argv[1]), "f", 1)
        store.save(64, {"a": b"64", "b": b"64"})
        put = Storage.put
        Storage.put = lambda s, k, d: os.kill(os.getpid(), signal.SIGKILL) if k.endswith("/b") else put(s, k, d)
        store.save(128, {"a": b"128", "b": b"128"})
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    store = place(Storage.open(str(tmp_path)), 2)
    ref = store.latest()
    assert (ref.samples, ref.generation) == (64, 1)
    assert store.read(ref, "b") == b"64"


def test_a_checkpoint_is_replaced_as_a_whole(storage):
    store = place(storage)
    store.save(64, {"a": b"old", "gone": b"old"})
    ref = store.save(64, {"a": b"new"})
    assert store.files(ref) == {"a": 3}
    assert store.read(ref, "a") == b"new"


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_damaged_file_is_an_error_that_names_it(storage, damage):
    store = place(storage)
    ref = store.save(64, {"weights": b"1234"})
    if damage == "gone":
        storage.delete(f"{ref.prefix}/weights")
    else:
        storage.put(f"{ref.prefix}/weights", b"1235")
    with pytest.raises(OrchError, match="ckpt-64/weights") as caught:
        store.read(ref, "weights")
    assert "submit again" in caught.value.remedy


def test_prune_keeps_the_last_of_this_generation_and_all_of_others(storage):
    place(storage, 1).save(32, {"x": b""})
    store = place(storage, 2)
    for samples in (64, 96, 1000, 128):
        store.save(samples, {"x": b""})
    store.prune(keep=2)
    assert [(r.samples, r.generation) for r in store.complete()] == [(32, 1), (128, 2), (1000, 2)]
    assert [i.key for i in storage.list("work/f/2")] == sorted(
        f"work/f/2/ckpt-{n}/{name}" for n in (128, 1000) for name in ("complete.json", "x")
    )


def test_prune_deletes_the_marker_first(storage, monkeypatch):
    store = place(storage)
    for samples in (1, 2):
        store.save(samples, {"a": b"", "z": b""})
    deleted = []
    delete = Storage.delete
    monkeypatch.setattr(Storage, "delete", lambda self, key: (deleted.append(key), delete(self, key))[1])
    store.prune(keep=1)
    assert deleted[0] == "work/f/1/ckpt-1/complete.json"


def test_clear_removes_checkpoints_of_all_generations_complete_or_not_and_nothing_else(storage):
    for generation in (1, 2):
        place(storage, generation).save(64, {"x": b""})
    storage.put("work/f/2/ckpt-96/x", b"half")
    storage.put("work/f/2/events/0.jsonl", b"")
    place(storage, 2).clear()
    assert [i.key for i in storage.list("work")] == ["work/f/2/events/0.jsonl"]
    assert place(storage, 3).latest() is None


def test_an_overtaken_writer_deletes_nothing(storage):
    store = place(storage)
    for samples in (1, 2, 3):
        store.save(samples, {"x": b""})
    storage.put("leases/f/2", b"{}")
    store.prune(1)
    assert [ref.samples for ref in store.complete()] == [1, 2, 3]
    place(storage, 2).save(4, {"x": b""})
    place(storage, 2).prune(1)
    assert [ref.samples for ref in store.complete()] == [1, 2, 3, 4]
