"""Artifacts: published once, whole or not at all, and never read damaged."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import LeaseLostError, OrchError, StageError
from orchestrator.store.artifacts import Manifest, Store, content_digest, describe, new_attempt

FILES = {"weights.bin": b"\0\1" * 5000, "deep/er/table.txt": b"a\tb\n", "timings.json": b"{}"}


@pytest.fixture
def store(any_root) -> Store:
    return Store.open(any_root)


@pytest.fixture(autouse=True)
def machine_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ORCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # of killed children too
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / "cache"


def draft(attempt: str = "a1", **fields) -> Manifest:
    values = {
        "kind": "pretrain",
        "fingerprint": "f" * 64,
        "attempt": attempt,
        "generation": 1,
        "stage": "teacher",
        "run": "run",
        "payload": {"kind": "pretrain", "steps": 500},
        "inputs": {"data": {"kind": "dataset", "fingerprint": "d" * 64}},
        "files": {},
        "content_digest": "",
        "metrics": {"loss": 1.5},
        "summary": {"steps": 500},
        "provenance": {"host": {"name": "here"}},
        "started": 1.0,
        "finished": 2.0,
        "wall_s": 1.0,
    }
    return Manifest(**{**values, **fields})


def write(directory: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return directory


def publish(store: Store, attempt: str = "a1", files: dict[str, bytes] = FILES, **fields) -> Manifest:
    manifest = draft(attempt, **fields)
    directory = write(store.attempt_dir(manifest.kind, manifest.fingerprint, attempt), files)
    return store.publish(manifest, directory)


def test_what_was_published_is_found_and_read(store):
    assert store.find("pretrain", "f" * 64) is None
    made = publish(store)
    handle = Store.open(store.url).handle("pretrain", "f" * 64)
    assert handle.manifest == made
    assert {name: handle.read(name) for name in FILES} == FILES
    assert {name: handle.local(name).read_bytes() for name in FILES} == FILES
    assert {name: file.size for name, file in made.files.items()} == {name: len(FILES[name]) for name in FILES}


def test_files_keep_their_relative_places_in_local(store):
    publish(store)
    handle = store.handle("pretrain", "f" * 64)
    assert handle.local("weights.bin").parent / "deep/er/table.txt" == handle.local("deep/er/table.txt")


def test_a_file_that_the_manifest_lacks_is_a_key_error(store):
    publish(store)
    for method in (store.handle("pretrain", "f" * 64).read, store.handle("pretrain", "f" * 64).local):
        with pytest.raises(KeyError):
            method("other")


def test_the_first_manifest_wins_and_is_returned_to_the_second(store):
    first = publish(store, "a1")
    second = publish(Store.open(store.url), "a2", {"weights.bin": b"other"})
    assert second == first
    assert Store.open(store.url).handle("pretrain", "f" * 64).read("weights.bin") == FILES["weights.bin"]


def test_of_eight_that_publish_one_wins_and_all_agree(store):
    barrier, returned = threading.Barrier(8), []

    def compete(number: int) -> None:
        other = Store.open(store.url)
        barrier.wait()
        returned.append(publish(other, f"a{number}", {"weights.bin": b"%d" % number}))

    threads = [threading.Thread(target=compete, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(returned) == 8
    assert len({manifest.attempt for manifest in returned}) == 1
    assert store.handle("pretrain", "f" * 64).read("weights.bin") == returned[0].attempt[1:].encode()


def test_an_overtaken_process_publishes_nothing(store):
    def overtaken() -> None:
        raise LeaseLostError("overtaken")

    directory = write(store.attempt_dir("pretrain", "f" * 64, "a1"))
    with pytest.raises(LeaseLostError):
        store.publish(draft(), directory, check=overtaken)
    assert Store.open(store.url).find("pretrain", "f" * 64) is None
    assert list(store.manifests()) == []


def test_the_check_comes_after_the_upload(store):
    seen = []
    directory = write(store.attempt_dir("pretrain", "f" * 64, "a1"))
    prefix = draft().prefix
    store.publish(draft(), directory, check=lambda: seen.extend(i.key for i in store.storage.list(prefix)))
    assert seen == sorted(f"{prefix}/{name}" for name in FILES)


def test_upload_then_commit_is_publish(store):
    directory = write(store.attempt_dir("pretrain", "f" * 64, "a1"))
    files = store.upload("pretrain", "f" * 64, "a1", directory, undeclared=["timings.json"])
    assert store.find("pretrain", "f" * 64) is None
    made = store.commit(replace(draft(), files=files, content_digest=content_digest(files)))
    assert made.content_digest == store.publish(draft("a2"), directory, undeclared=["timings.json"]).content_digest
    assert store.handle("pretrain", "f" * 64).read("weights.bin") == FILES["weights.bin"]


def test_files_written_in_place_are_not_copied(tmp_path):
    store = Store.open(str(tmp_path / "root"))
    directory = write(store.attempt_dir("pretrain", "f" * 64, "a1"))
    inode = (directory / "weights.bin").stat().st_ino
    store.publish(draft(), directory)
    assert store.handle("pretrain", "f" * 64).local("weights.bin").stat().st_ino == inode


def test_files_from_elsewhere_are_copied(store, tmp_path):
    store.publish(draft(), write(tmp_path / "elsewhere"))
    assert store.handle("pretrain", "f" * 64).read("deep/er/table.txt") == FILES["deep/er/table.txt"]


def test_the_content_digest_covers_names_and_bytes_of_declared_files_only(tmp_path):
    def digest(name: str, files: dict[str, bytes]) -> str:
        return content_digest(describe(write(tmp_path / name, files), undeclared=["timings.json"]))

    base = digest("base", FILES)
    assert digest("equal", dict(reversed(FILES.items()))) == base
    assert digest("timings", {**FILES, "timings.json": b"other"}) == base
    assert digest("bytes", {**FILES, "weights.bin": b"x" + FILES["weights.bin"][1:]}) != base
    assert digest("more", {**FILES, "empty": b""}) != base
    renamed = {("w.bin" if name == "weights.bin" else name): data for name, data in FILES.items()}
    assert digest("renamed", renamed) != base


def test_links_and_impossible_names_are_refused(tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "link").symlink_to(tmp_path)
    with pytest.raises(StageError, match="link"):
        describe(tmp_path / "links")
    with pytest.raises(StageError, match="key"):
        describe(write(tmp_path / "names", {"a#1": b""}))
    with pytest.raises(StageError, match=r"absent\.json"):
        describe(write(tmp_path / "plain"), undeclared=["absent.json"])


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_damaged_files_are_never_handed_out(store, damage):
    made = publish(store)
    key = f"{made.prefix}/weights.bin"
    data = FILES["weights.bin"]
    if damage == "gone":
        store.storage.delete(key)
    else:
        store.storage.put(key, data[:-1] + b"x" if damage == "changed" else data[:-1])
    handle = store.handle("pretrain", "f" * 64)
    with pytest.raises(OrchError, match=r"weights\.bin.*teacher") as caught:
        handle.read("weights.bin")
    assert "submit again" in caught.value.remedy
    if damage == "changed" and store.storage.local(key) is not None:
        return  # in place only the size is looked at
    with pytest.raises(OrchError, match=r"weights\.bin"):
        handle.local("weights.bin")
    assert handle.read("timings.json") == b"{}"


def test_the_machine_cache_is_filled_once_and_healed(s3_root, machine_cache):
    store = Store.open(s3_root)
    made = publish(store)
    path = store.handle("pretrain", "f" * 64).local("weights.bin")
    assert path.is_relative_to(machine_cache)
    store.storage.delete(f"{made.prefix}/timings.json")
    inode = path.stat().st_ino
    assert store.handle("pretrain", "f" * 64).local("weights.bin").stat().st_ino == inode
    path.write_bytes(b"cut")
    assert store.handle("pretrain", "f" * 64).local("weights.bin").read_bytes() == FILES["weights.bin"]


def test_manifests_are_listed_by_kind_newest_last(store):
    for number, kind in enumerate(["dataset", "pretrain", "dataset"]):
        publish(store, f"a{number}", kind=kind, fingerprint=f"{number}" * 64, finished=10.0 - number)
    store.storage.put("leases/x/1", b"{}")
    store.storage.put("work/x/1/events/0.jsonl", b"{}")
    store.storage.put("pretrain/unfinished/attempts/a/file", b"")
    assert [m.fingerprint[0] for m in Store.open(store.url).manifests()] == ["2", "1", "0"]
    assert [m.fingerprint[0] for m in Store.open(store.url).manifests("dataset")] == ["2", "0"]


def test_equal_manifests_are_equal_bytes_and_survive_json():
    made = draft(payload={"b": 1, "a": [1, {"z": 0, "y": 1}]})
    other = draft(payload={"a": [1, {"y": 1, "z": 0}], "b": 1})
    assert made.to_json() == other.to_json()
    assert Manifest.from_json(made.to_json(), "x") == made


@pytest.mark.parametrize(
    ("metrics", "named"), [({"ok": 1.0, "loss": float("nan")}, "loss"), ({"top1": float("inf")}, "top1")]
)
def test_metrics_that_are_not_finite_are_refused_by_name(store, metrics, named):
    with pytest.raises(StageError, match=named):
        publish(store, metrics=metrics)
    assert store.find("pretrain", "f" * 64) is None


BROKEN = {
    "empty": b"",
    "cut": draft().to_json()[:100],
    "not an object": b"[]",
    "field missing": b'{"format": 1, "kind": "x", "files": {}}',
    "unknown field": json.dumps({**json.loads(draft().to_json()), "extra": 1}).encode(),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_unreadable_manifests_say_where_and_what_to_do(store, data):
    store.storage.put(f"pretrain/{'f' * 64}/manifest.json", data)
    with pytest.raises(OrchError, match=r"manifest\.json: not a readable manifest") as caught:
        store.find("pretrain", "f" * 64)
    assert "delete" in caught.value.remedy


def test_manifests_of_newer_versions_ask_for_an_upgrade(store):
    newer = {**json.loads(draft().to_json()), "format": 99, "unheard_of": 1}
    store.storage.put(f"pretrain/{'f' * 64}/manifest.json", json.dumps(newer).encode())
    with pytest.raises(OrchError, match="newer version") as caught:
        store.find("pretrain", "f" * 64)
    assert "upgrade" in caught.value.remedy


def test_an_artifact_that_is_not_there_says_so(store):
    with pytest.raises(OrchError, match="no finished artifact"):
        store.handle("pretrain", "0" * 64)


def test_handles_are_pickled_by_address(store):
    publish(store)
    handle = pickle.loads(pickle.dumps(store.handle("pretrain", "f" * 64)))
    assert handle.read("weights.bin") == FILES["weights.bin"]


def test_attempt_directories_are_new_and_empty(store):
    attempts = [new_attempt() for _ in range(3)]
    directories = [store.attempt_dir("pretrain", "f" * 64, attempt) for attempt in attempts]
    assert len(set(directories)) == 3
    assert all(os.listdir(directory) == [] for directory in directories)
    assert store.find("pretrain", "f" * 64) is None


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from orchestrator.store.artifacts import Store
    sys.path.insert(0, sys.argv[1])
    from test_store_artifacts import draft, write
    store = Store.open(sys.argv[2])
    at = sys.argv[3]
    die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    directory = store.attempt_dir("pretrain", "f" * 64, "a1")
    if at != "in the upload":
        write(directory)
    if at == "before the upload":
        die()
    if at == "in the upload":
        put = type(store.storage).put
        type(store.storage).put = lambda s, key, data, **how: die() if "table" in key else put(s, key, data, **how)
    if at == "before the manifest":
        type(store.storage).create = die
    elsewhere = write(Path(sys.argv[4]))
    store.publish(draft(), elsewhere if at == "in the upload" else directory)
    die()
"""


@pytest.mark.parametrize("at", ["before the upload", "in the upload", "before the manifest", "after the manifest"])
@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_killed_publication_leaves_all_or_nothing(place, at, tmp_path, request):
    root = str(tmp_path / "root") if place == "local" else request.getfixturevalue("s3_root")
    script = textwrap.dedent(KILLED)
    arguments = [str(Path(__file__).parent), root, at, str(tmp_path / "elsewhere")]
    killed = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    store = Store.open(root)
    found = store.find("pretrain", "f" * 64)
    assert (found is not None) == (at == "after the manifest")
    made = publish(store, "a2")
    assert made.attempt == ("a1" if at == "after the manifest" else "a2")
    assert {name: store.handle("pretrain", "f" * 64).read(name) for name in FILES} == FILES
