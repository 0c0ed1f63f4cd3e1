"""A power cut on a local store: whatever it tears is never taken for finished, and submitting again goes on.

What a cut can leave is simulated by truncating or emptying what is not on the disk for good, and by watching in which
order files are put there (fsync) and get their names.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from faults import World
from tables import bodies, digests, plan_of

from orchestrator.cli.main import orch
from orchestrator.errors import OrchError
from orchestrator.io.storage import Storage
from orchestrator.store.artifacts import Store
from orchestrator.store.checkpoints import MARKER, CheckpointStore
from orchestrator.store.events import EventWriter, compact_events
from orchestrator.store.keep import keep_artifact
from orchestrator.store.leases import Lease, acquire


@pytest.fixture
def on_disk(monkeypatch) -> list[str]:
    """What was put on the disk for good or given its name, in order: ("sync" | "name") and a path's last part."""
    order: list[str] = []
    fsync, link = os.fsync, os.link

    def noted_fsync(descriptor):
        order.append(f"sync {os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}'))}")
        fsync(descriptor)

    def noted_link(source, target, **options):
        order.append(f"name {os.path.basename(target)}")
        link(source, target, **options)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "link", noted_link)
    return order


def test_files_and_their_folders_are_on_the_disk_before_the_manifest_has_its_name(tmp_path, on_disk):
    with World(str(tmp_path / "store")) as world:
        plan = plan_of("one", tmp_path / "trace")
        result = world.submit(plan)
        assert result is not None
        assert result.ok
    named = on_disk.index("name manifest.json")
    attempt, fingerprint = result.manifests["a"].attempt, str(plan.nodes["a"].fingerprint)
    for name in ("text", "when", attempt, "attempts", fingerprint, "toy"):
        assert f"sync {name}" in on_disk[:named], (name, on_disk)
    assert on_disk[named - 1].startswith("sync .part-")
    assert f"sync {fingerprint}" in on_disk[named:]
    assert "name plan.json" in on_disk[:named]


def test_a_checkpoints_files_are_on_the_disk_before_its_marker_is(tmp_path, on_disk):
    CheckpointStore(Storage.open(str(tmp_path)), "f", 1).save(5, {"weights": b"w" * 1000})
    assert on_disk.index("sync weights") < on_disk.index("sync ckpt-5") < on_disk.index(f"sync {MARKER}")


@pytest.mark.parametrize("left", [b"", b'{"format": 1, "fi'], ids=["empty", "cut off"])
@pytest.mark.parametrize("torn", [MARKER, "weights"])
def test_resume_takes_the_checkpoint_before_a_torn_one(torn, left, tmp_path):
    storage = Storage.open(str(tmp_path))
    checkpoints = CheckpointStore(storage, "f", 1)
    whole = checkpoints.save(5, {"weights": b"w" * 1000})
    last = checkpoints.save(9, {"weights": b"v" * 1000})
    (tmp_path / last.prefix / torn).write_bytes(left)
    assert CheckpointStore(storage, "f", 2).latest() == whole


def test_a_torn_lease_is_taken_over(tmp_path):
    store = Store.open(str(tmp_path))
    lease = acquire(store, "f")
    assert isinstance(lease, Lease)
    lease.release()
    (tmp_path / "leases/f/1").write_bytes(b'{"id": "12')
    again = acquire(store, "f")
    assert isinstance(again, Lease)
    assert again.generation == 2
    again.release()


RECORDS = ("leases/a/1", "runs/RUN/state.json", "work/a/1/events/0.jsonl")
COMMANDS = ("status", "status last", "logs last", "logs last --events", "report last", "show last", "gc --no-mlflow")


@pytest.mark.parametrize("left", [0, 0.7], ids=["empty", "cut off"])
@pytest.mark.parametrize("torn", RECORDS)
def test_a_torn_record_ends_no_command_and_submitting_again_goes_on(torn, left, tmp_path, monkeypatch):
    """The submitter was in the middle of its work when the power went, or its disk broke."""
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "home"))
    with World(str(tmp_path / "store")) as world:
        plan = plan_of("chain", tmp_path / "trace")
        died = world.submit(plan, lambda p: "kill" if (p.what, p.key) == ("create", "toy/a/manifest.json") else None)
        assert died is None
        (run,) = (tmp_path / "store/runs").iterdir()
        place = torn.replace("RUN", run.name).replace("/a/", f"/{plan.nodes['a'].fingerprint}/")
        record = tmp_path / "store" / place
        whole = record.read_bytes()
        record.write_bytes(whole[: int(left * len(whole))])
        for command in COMMANDS:
            said = CliRunner().invoke(orch, [*command.split(), "--store", str(tmp_path / "store")])
            assert said.exception is None, (command, said.output, said.exception)
        result = world.submit(plan)
        assert result is not None
        assert result.ok, [s.reason for s in result.failed]


@pytest.mark.parametrize("torn", ["text", "when"])
def test_an_attempt_without_a_manifest_is_never_read_and_is_made_anew(torn, tmp_path):
    """The process died before the manifest, then the power went."""
    with World(str(tmp_path / "store")) as world:
        plan = plan_of("chain", tmp_path / "trace")
        fingerprint = str(plan.nodes["a"].fingerprint)
        died = world.submit(plan, lambda p: "kill" if (p.what, p.key) == ("create", "toy/a/manifest.json") else None)
        assert died is None
        (attempt,) = (tmp_path / "store/toy" / fingerprint / "attempts").iterdir()
        (attempt / torn).write_bytes(b"")
        result = world.submit(plan)
        assert result is not None
        assert result.ok
        assert result.manifests["a"].attempt != attempt.name
        assert world.store.handle("toy", fingerprint).read("text") == b"a+0of2+1of2"


@pytest.mark.parametrize("left", [b"", b"a+0of2"], ids=["empty", "cut off"])
def test_a_finished_artifact_that_the_disk_lost_part_of_is_refused_with_the_remedy(left, tmp_path):
    """No cut does this, for all was on the disk; a broken disk may."""
    with World(str(tmp_path / "store")) as world:
        plan = plan_of("chain", tmp_path / "trace")
        result = world.submit(plan)
        assert result is not None
        undisturbed = digests(result)
        handle = world.store.handle("toy", str(plan.nodes["a"].fingerprint))
        Path(tmp_path / "store" / handle.manifest.prefix / "text").write_bytes(left)
        for read in (handle.read, handle.local):
            with pytest.raises(OrchError, match="submit again"):
                read("text")
        assert digests(world.submit(plan)) == undisturbed
        assert bodies(plan, tmp_path / "trace")["a"] == 1


def test_a_pack_is_on_the_disk_before_what_it_holds_is_deleted(tmp_path, on_disk, monkeypatch):
    storage = Storage.open(str(tmp_path))
    for number in range(9):
        storage.create(f"work/f/1/events/{number}.jsonl", b"{}\n")
    delete = Storage.delete
    monkeypatch.setattr(Storage, "delete", lambda self, key: (on_disk.append("delete"), delete(self, key)))
    assert compact_events(storage, "f") == 9
    assert on_disk.index("name 0-9.jsonl") < on_disk.index("sync 1") < on_disk.index("delete")


def test_a_kept_name_is_on_the_disk_before_it_is_told(tmp_path, on_disk):
    keep_artifact(Storage.open(str(tmp_path)), "toy", "f" * 64, "a", "best")
    assert on_disk[-3:-1] == [on_disk[-3], "name best"]
    assert on_disk[-3].startswith("sync .part-")


def test_points_are_on_the_disk_before_the_checkpoint_after_them(tmp_path, on_disk):
    """They are not computed again where a training goes on from it."""
    storage = Storage.open(str(tmp_path))
    with EventWriter(storage, "f", 1, interval_s=3600) as events:
        events.emit("report", samples=5, metrics={"loss": 0.5})
        assert events.flush()
        CheckpointStore(storage, "f", 1).save(5, {"weights": b"w"})
    assert on_disk.index("name 0.jsonl") < on_disk.index("sync events") < on_disk.index(f"sync {MARKER}")
    assert on_disk[on_disk.index("name 0.jsonl") - 1].startswith("sync .part-")
