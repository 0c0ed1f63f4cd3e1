"""Garbage collection: what is needed stays with all it was made from, the rest goes, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from store_made import demo, make, submitted

from orchestrator.errors import OrchError
from orchestrator.store import collect as collecting
from orchestrator.store.artifacts import Store
from orchestrator.store.checkpoints import CheckpointStore
from orchestrator.store.collect import collect, store_time
from orchestrator.store.events import EventWriter
from orchestrator.store.garbage import DAY_S, Survey, survey
from orchestrator.store.keep import keep_artifact, keep_run
from orchestrator.store.leases import acquire, current_generation
from orchestrator.store.runs import create_run, list_runs


@pytest.fixture
def store(any_root) -> Store:
    return Store.open(any_root)


@pytest.fixture
def local(tmp_path) -> Store:
    return Store.open(str(tmp_path / "store"))


def look(store: Store, older_than_s: float = 0.0, registered=None) -> Survey:
    """A survey by the store's clock."""
    return survey(store, older_than_s, registered or {}, now=store_time(store.storage))


def clean_up(store: Store, older_than_s: float = 0.0, registered=None):
    """Survey and deletion."""
    return collect(store, look(store, older_than_s, registered))


def stages(store: Store) -> set[str]:
    return {manifest.stage for manifest in store.afresh().manifests()}


def keys(store: Store, *tops: str) -> list[str]:
    return [info.key for info in store.storage.list("") if info.key.split("/")[0] in tops]


def going(found: Survey, category: str) -> list[str]:
    return [each.what for each in found.garbage if each.category == category]


def keep(store: Store, manifest, name: str = "best") -> None:
    keep_artifact(store.storage, manifest.kind, manifest.fingerprint, manifest.stage, name)


def age(store: Store, prefix: str, days: float) -> None:
    """Make everything under a prefix of a local store as old as that."""
    for path in Path(store.url, prefix).rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - days * DAY_S,) * 2)


def test_looking_changes_nothing(store):
    submitted(store, demo(store))
    before = [(info.key, info.size) for info in store.storage.list("")]
    survey(store, 0.0, {})
    assert [(info.key, info.size) for info in store.storage.list("")] == before


def test_what_is_kept_stays_with_its_ancestors_and_the_rest_goes(store):
    made = demo(store)
    keep(store, made["teacher"])
    done = clean_up(store)
    assert stages(store) == {"pairs", "clean", "teacher"}
    assert done.deleted["artifacts"][0] == 2
    assert keys(store, "distill", "evaluate") == []
    handle = store.afresh().handle("pretrain", made["teacher"].fingerprint)
    assert handle.read("data.bin").startswith(b"teacher")


@pytest.mark.parametrize("root", ["kept run", "registered", "registered run", "young"])
def test_every_root_protects_all_it_was_made_from(store, root):
    made = demo(store)
    run = submitted(store, {"small": made["small"]})
    registered, older_than_s = {}, 0.0
    if root == "kept run":
        keep_run(store.storage, run.id)
    elif root == "young":
        older_than_s = DAY_S
    else:
        registered = {made["small"].fingerprint if root == "registered" else run.id: "MLflow's model tiny, version 1"}
    found = look(store, older_than_s, registered)
    collect(store, found)
    scores = {"scores"} if root == "young" else set()
    assert stages(store) == {"pairs", "clean", "teacher", "small"} | scores
    roots = {"kept run": "kept as ", "young": "run ", "registered": "MLflow's ", "registered run": "MLflow's "}
    assert next(iter(found.stays())).startswith(roots[root]), found.stays()


def test_nothing_is_kept_and_nothing_is_young_so_everything_goes(store):
    made = demo(store)
    submitted(store, made)
    EventWriter(store.storage, made["small"].fingerprint, 1).close()
    lease = acquire(store, made["small"].fingerprint)
    lease.release()
    CheckpointStore(store.storage, made["small"].fingerprint, 1).save(64, {"state": b"x"})
    store.storage.put("sources/ab.json", json.dumps({"content_digest": "0" * 64}).encode())
    store.storage.put("sources/ab/index.parquet", b"index")
    done = clean_up(store)
    assert done.left == []
    # The highest generation of each lease stays: the fencing number must never begin again.
    assert keys(store, "dataset", "curate", "pretrain", "distill", "evaluate") == []
    assert keys(store, "work", "sources", "runs") == []
    assert current_generation(store.storage, made["small"].fingerprint) > lease.generation
    if (root := store.storage.local("leases")) is not None:
        assert {path.parent.parent for path in root.parent.rglob("*") if path.is_file()} == {root}
        assert not [path for path in root.parent.glob("*/*") if path.parent != root], "empty directories"


def test_an_old_artifact_stays_for_a_young_one_made_from_it_or_a_young_run_that_used_it(local):
    made = demo(local)
    for kind in ("dataset", "curate", "pretrain", "distill", "evaluate"):
        age(local, kind, 30)
    age(local, f"distill/{made['small'].fingerprint}", 1)
    clean_up(local, 14 * DAY_S)
    assert stages(local) == {"pairs", "clean", "teacher", "small"}
    for kind in ("dataset", "curate", "pretrain", "distill"):
        age(local, kind, 30)
    submitted(local, {"clean": made["clean"]})
    clean_up(local, 14 * DAY_S)
    assert stages(local) == {"pairs", "clean"}


def test_a_run_that_is_at_work_keeps_the_inputs_of_its_stages_however_old(store):
    made = demo(store)
    store.storage.delete(f"distill/{made['small'].fingerprint}/manifest.json")
    store = store.afresh()
    run = submitted(store, {name: made[name] for name in ("pairs", "clean", "teacher", "small")}, small="running")
    with acquire(store, made["small"].fingerprint):
        found = look(store)
        collect(store, found)
    assert stages(store) == {"pairs", "clean", "teacher"}
    assert f"run {run.id} is at work" in found.stays()
    assert [r.id for r in list_runs(store)] == [run.id]
    assert keys(store, "distill"), "its attempt is being written"


def test_an_old_run_is_at_work_while_a_lease_of_its_stages_is_alive(local):
    made = demo(local)
    run = submitted(local, {name: made[name] for name in ("clean", "small")}, small="running")
    for top in ("runs", "dataset", "curate", "pretrain", "distill", "evaluate"):
        age(local, top, 30)
    with acquire(local, made["small"].fingerprint):
        found = look(local, 14 * DAY_S)
    assert f"run {run.id} is at work" in found.stays()
    assert "scores" not in {found.lineage.artifacts[f].stage for f in found.because}


def test_attempts_that_lost_and_those_nobody_published_go(store):
    made = make(store, "teacher")
    keep(store, made)
    store.storage.put(f"pretrain/{made.fingerprint}/attempts/0002-b/weights", b"loser")
    store.storage.put(f"pretrain/{'a' * 64}/attempts/0001-a/weights", b"never published")
    found = look(store)
    assert len(going(found, "attempts")) == 2
    collect(store, found)
    assert keys(store, "pretrain") == [f"{made.prefix}/data.bin", f"pretrain/{made.fingerprint}/manifest.json"]


def test_checkpoints_of_finished_stages_go_and_logs_stay(store):
    made = make(store, "teacher")
    keep(store, made)
    CheckpointStore(store.storage, made.fingerprint, 1).save(64, {"state": b"x"})
    store.storage.put(f"work/{made.fingerprint}/1/logs/0", b"hello")
    clean_up(store)
    assert keys(store, "work") == [f"work/{made.fingerprint}/1/logs/0"]


@pytest.mark.parametrize("run", ["is kept", "is gone"])
def test_the_highest_checkpoint_of_an_unfinished_stage_stays_as_long_as_its_run_does(store, run):
    fingerprint = "c" * 64
    record = create_run(store, "demo", "", {"stages": {"t": {"kind": "pretrain", "fingerprint": fingerprint}}})
    stage = {"kind": "pretrain", "fingerprint": fingerprint, "state": "stopped", "reason": ""}
    record.write_state({"stages": {"t": stage}})
    for generation, samples in ((1, 64), (1, 128), (2, 192)):
        CheckpointStore(store.storage, fingerprint, generation).save(samples, {"state": b"x" * samples})
    store.storage.delete(f"work/{fingerprint}/2/ckpt-192/complete.json")  # incomplete: the one before is precious
    if run == "is kept":
        keep_run(store.storage, record.id)
    clean_up(store)
    left = [ref.samples for ref in CheckpointStore(store.storage, fingerprint, 9).complete()]
    assert left == ([128] if run == "is kept" else [])
    assert bool(keys(store, "work")) == (run == "is kept")


def test_work_is_not_touched_while_somebody_holds_the_lease(store):
    fingerprint = "c" * 64
    CheckpointStore(store.storage, fingerprint, 1).save(64, {"state": b"x"})
    found = look(store)
    assert going(found, "work")
    with acquire(store, fingerprint):
        done = collect(store, found)
    assert [why for _, why in done.left] == [f"process {os.getpid()} on {os.uname().nodename} is at work on it"]
    assert CheckpointStore(store.storage, fingerprint, 1).latest() is not None


def test_sources_stay_for_data_sets_that_need_their_copies_or_were_made_of_their_content(store):
    for place, digest in (("a", "aa" * 32), ("b", "bb" * 32), ("c", "cc" * 32)):
        store.storage.put(f"sources/{place}.json", json.dumps({"content_digest": digest}).encode())
        store.storage.put(f"sources/{place}/shards/0.tar", b"shard")
    store.storage.put("sources/d/parts/000000.parquet", b"indexing was never finished")
    copied = make(store, "x", "dataset", digest="00" * 32, summary={"source": "x", "needs": ["sources/a"]})
    indexed = make(store, "y", "dataset", digest="bb" * 32)
    keep(store, copied, "x")
    keep(store, indexed, "y")
    clean_up(store)
    assert {key.split("/")[1].removesuffix(".json") for key in keys(store, "sources")} == {"a", "b"}


def test_records_of_runs_stay_while_anything_they_made_does(store):
    made = demo(store, run="20260101-000000-demo-0001")
    store.storage.put("runs/20260101-000000-demo-0001/recipe.yaml", b"name: demo")
    store.storage.put("runs/20260102-000000-demo-0002/recipe.yaml", b"name: demo")
    keep(store, made["pairs"])
    clean_up(store)
    assert keys(store, "runs") == ["runs/20260101-000000-demo-0001/recipe.yaml"]


def test_columns_that_a_kept_selection_refers_to_upstream_stay(store):
    """A `curate` artifact holds a selection only; its rows' columns are files of the data set before it."""
    pairs = make(store, "pairs", "dataset", files={"captions.parquet": b"captions", "index.parquet": b"index"})
    here = {"artifact": f"dataset/{pairs.fingerprint}", "file": "captions.parquet"}
    description = json.dumps({"columns": {"captions": {"file": here}}}).encode()
    first = make(store, "first", "curate", {"data": pairs}, files={"dataset.json": description})
    second = make(store, "second", "curate", {"data": first}, {"steps": []}, files={"dataset.json": description})
    keep(store, second)
    clean_up(store)
    fresh = store.afresh()
    refers = json.loads(fresh.handle("curate", second.fingerprint).read("dataset.json"))["columns"]["captions"]["file"]
    kind, _, fingerprint = refers["artifact"].partition("/")
    assert fresh.handle(kind, fingerprint).read(refers["file"]) == b"captions"


def test_what_is_not_ours_is_never_touched(store):
    strangers = ["mlartifacts/1/model", "pretrain/notes.txt", "photos/0001.jpg", "pretrain/short/attempts/x"]
    for key in strangers:
        store.storage.put(key, b"x")
    demo(store)
    clean_up(store)
    assert keys(store, "mlartifacts", "photos", "pretrain") == sorted(strangers)


@pytest.mark.parametrize("name", ["{0.prefix}/weights.bin#17", "pretrain/{0.fingerprint}/.part-0123456789abcdef"])
def test_half_written_files_of_killed_processes_go(name, local):
    made = make(local, "teacher")
    keep(local, made)
    left = Path(local.url, name.format(made))
    left.write_bytes(b"half")
    clean_up(local, 14 * DAY_S)
    assert left.exists()
    age(local, "pretrain", 30)
    done = clean_up(local, 14 * DAY_S)
    assert not left.exists()
    assert done.deleted["leftovers"] == (1, 4)


def test_old_generations_of_leases_go_and_the_highest_stays(store):
    for _ in range(3):
        acquire(store, "d" * 64).release()  # type: ignore[union-attr]
    clean_up(store)
    assert [key for key in keys(store, "leases") if "d" * 64 in key] == [f"leases/{'d' * 64}/3"]


def test_a_damaged_manifest_forbids_deleting_anything(store):
    made = demo(store)
    store.storage.put(f"distill/{made['small'].fingerprint}/manifest.json", b"{")
    found = look(store.afresh())
    before = [info.key for info in store.storage.list("")]
    with pytest.raises(OrchError, match="what they need is not known"):
        collect(store, found)
    assert [info.key for info in store.storage.list("")] == before


class Interrupted(Exception):
    pass


def test_a_collection_that_is_killed_anywhere_leaves_no_artifact_without_its_files_or_ancestors(store, monkeypatch):
    made = demo(store)
    found, storage = look(store), store.storage
    real, calls = type(storage).delete_many, []
    for stop_at in range(1, 6):
        calls.clear()

        def delete_many(self, keys, real=real, stop_at=stop_at):
            calls.append(keys)
            if len(calls) >= stop_at:
                real(self, keys[: len(keys) // 2])
                raise Interrupted
            real(self, keys)

        monkeypatch.setattr(type(storage), "delete_many", delete_many)
        monkeypatch.setattr(collecting, "BATCH", 1)
        with pytest.raises(Interrupted):
            collect(store, found)
        fresh = store.afresh()
        for manifest in fresh.manifests():
            assert all(fresh.handle(manifest.kind, manifest.fingerprint).read(name) for name in manifest.files)
            assert all(fresh.find(use["kind"], use["fingerprint"]) for use in manifest.inputs.values())
        monkeypatch.undo()
        found = look(store.afresh())
        if stages(store) == set():
            break
    clean_up(store.afresh())
    assert keys(store, "dataset", "curate", "pretrain", "distill", "evaluate", "work") == []
    assert made


@pytest.mark.parametrize("who", ["a submission", "orch keep"])
def test_what_somebody_comes_to_need_between_the_look_and_the_deletion_stays(store, who):
    made = demo(store)
    found = look(store)
    if who == "a submission":
        create_run(
            store, "demo", "", {"stages": {"small": {"kind": "distill", "fingerprint": made["small"].fingerprint}}}
        )
    else:
        keep(store, made["small"])
    done = collect(store, found)
    assert stages(store) == {"pairs", "clean", "teacher", "small"}
    assert "came meanwhile" in done.left[0][1]


@pytest.mark.parametrize("moment", range(20))
def test_a_submission_that_writes_its_plan_and_then_finds_an_artifact_has_it(local, monkeypatch, moment):
    """A submitter begins in the middle of a deletion: it finds the artifact whole, or not at all."""
    target = demo(local)["small"]
    found = look(local)
    seen: list[object] = []
    calls, guard, kind = [0], threading.Lock(), type(local.storage)
    plan = {"stages": {"small": {"kind": target.kind, "fingerprint": target.fingerprint}}}

    def stepped(real):
        def call(self, *args, **kwargs):
            with guard:
                calls[0] += 1
                due = calls[0] == moment + 1
            if due:
                fresh = local.afresh()
                create_run(fresh, "other", "", plan)
                seen.append(fresh.find(target.kind, target.fingerprint))
            return real(self, *args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("delete", "delete_many", "children"):
            patch.setattr(kind, name, stepped(getattr(kind, name)))
        collect(local, found)
    assert seen, f"there are only {calls[0]} moments"
    if seen[0] is not None:
        fresh = local.afresh()
        assert fresh.handle(target.kind, target.fingerprint).read("data.bin")
        assert {"pairs", "clean", "teacher", "small"} <= stages(local)


def test_an_artifact_that_was_made_anew_since_the_look_stays(store):
    made = make(store, "teacher")
    found = look(store)
    store.storage.delete(f"pretrain/{made.fingerprint}/manifest.json")
    again = make(store.afresh(), "teacher", attempt="0002-b")
    assert again.fingerprint == made.fingerprint
    done = collect(store, found)
    assert done.left[0][1] == "it was made anew meanwhile"
    assert store.afresh().handle("pretrain", made.fingerprint).read("data.bin")


def test_bytes_are_counted_as_they_are(store):
    made = make(store, "teacher", files={"weights": b"x" * 1000})
    manifest = store.storage.head(f"pretrain/{made.fingerprint}/manifest.json")
    assert manifest is not None
    assert look(store).by_category()["artifacts"] == (1, 1000 + manifest.size)
    assert clean_up(store).deleted["artifacts"] == (1, 1000 + manifest.size)
    assert replace(made, files={}).size == 0
