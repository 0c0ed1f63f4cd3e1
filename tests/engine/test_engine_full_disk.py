"""A disk that is full at any moment of a submission: one clear failure, nothing finished is lost, it goes on after."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import submitters
from small_disk import SmallDisk, small_disk
from submitters import FINGERPRINT, STEPS

from orchestrator.errors import OrchError
from orchestrator.io.storage import Storage
from orchestrator.store.artifacts import Store
from orchestrator.store.checkpoints import CheckpointStore

pytestmark = pytest.mark.timeout(60)

TTL_S = 1.0
"""A lease cannot be released on a full disk; this process lives on, so it has to expire."""
FULL = ("full", "No space left")


@pytest.fixture
def disk(tmp_path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", "4m") as mounted:
        yield mounted


@pytest.fixture
def trace(tmp_path) -> Path:
    (tmp_path / "trace").mkdir()
    (tmp_path / "trace/go").touch()
    return tmp_path / "trace"


def fill_at(disk: SmallDisk, monkeypatch, method: str, ending: str) -> None:
    """Fill the disk just before a call of the store."""
    original = getattr(Storage, method)

    def fills(self, key, *args, **options):
        if key.endswith(ending):
            disk.fill()
        return original(self, key, *args, **options)

    monkeypatch.setattr(Storage, method, fills)


MOMENTS = {
    "its lease is taken": ("create", f"leases/{FINGERPRINT}/1", 0),
    "the first checkpoint is written": ("put", "ckpt-1/way", 0),
    "a checkpoint's marker is written": ("put", "ckpt-4/complete.json", 3),
    "the second checkpoint is begun": ("delete", "ckpt-2/complete.json", 1),
    "the manifest is written": ("create", "manifest.json", STEPS),
}
"""When the disk is filled -> the call of the store, and the steps whose checkpoint is there afterwards."""


@pytest.mark.parametrize("moment", list(MOMENTS))
def test_a_disk_that_is_full_when(moment, disk, trace, monkeypatch):
    method, ending, kept = MOMENTS[moment]
    root = str(disk.path / "store")
    with monkeypatch.context() as patch:
        fill_at(disk, patch, method, ending)
        failed = submitters.submit(root, str(trace), TTL_S)
    status = failed.stages["walk"]
    assert status.state == "failed"
    assert any(word in status.reason for word in FULL), status.reason
    assert "submit again" in status.remedy or "submitting again" in status.remedy
    checkpoints = CheckpointStore(Storage.open(root), FINGERPRINT, 9)
    found = checkpoints.latest()
    assert (0 if found is None else found.samples) == kept
    disk.make_space()
    done = submitters.submit(root, str(trace), TTL_S)
    assert done.stages["walk"].state == "done"
    assert Store.open(root).handle("walker", FINGERPRINT).read("way") == b"0 1 2 3 4 5"
    again = [path for step in range(kept) for path in trace.glob(f"*.step{step}")]
    assert len(again) == kept, "work that had its checkpoint was done again"


def test_half_a_checkpoint_takes_no_room(disk):
    """So that a full disk is not fuller after every try, and the one before stays."""
    storage = Storage.open(str(disk.path / "store"))
    checkpoints = CheckpointStore(storage, FINGERPRINT, 1)
    checkpoints.save(1, {"state": b"x" * 1_000_000})
    before = disk_use(disk)
    for _ in range(3):
        with pytest.raises(Exception, match="disk full"):
            checkpoints.save(2, {"a": b"y" * 1_500_000, "b": b"z" * 2_000_000})
    assert disk_use(disk) - before < 50_000
    assert checkpoints.read(checkpoints.latest(), "state") == b"x" * 1_000_000


def disk_use(disk: SmallDisk) -> int:
    return sum(path.stat().st_size for path in disk.path.rglob("*") if path.is_file())


def test_a_full_cache_of_a_remote_stores_files_is_named_instead_of_the_store(disk):
    remote = Storage.open("memory://full-cache")
    remote.put("weights", b"w" * 5_000_000)
    with pytest.raises(OrchError, match=rf"^{disk.path}/cache/weights: disk full"):
        remote.download("weights", disk.path / "cache" / "weights")
    assert disk_use(disk) == 0


def save_safetensors(out: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"weights": torch.zeros(2_000_000)}, out / "model.safetensors")


def save_table(out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": np.random.default_rng(0).random(1_000_000)}), out / "index.parquet")


def save_text(out: Path) -> None:
    (out / "report.json").write_text("x" * 5_000_000)


def save_array(out: Path) -> None:
    np.save(out / "uid.npy", np.zeros(1_000_000))


@pytest.mark.parametrize("save", [save_safetensors, save_table, save_text, save_array])
def test_whatever_library_meets_the_full_disk_the_stage_says_so_and_how_much_room_there_is(
    save, disk, trace, monkeypatch
):
    root = str(disk.path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(submitters, "walk", lambda ctx: save(ctx.out))
        failed = submitters.submit(root, str(trace), TTL_S).stages["walk"]
    assert failed.reason.startswith("the disk is full: ")
    assert f"{root}/walker/{FINGERPRINT}/attempts/" in failed.reason
    assert "MB left" in failed.reason
    assert "submitting again goes on" in failed.remedy
    assert submitters.submit(root, str(trace), TTL_S).stages["walk"].state == "done"


def test_features_of_an_embed_stage_that_do_not_fit_are_an_error_and_not_a_dead_process(disk):
    """A memory map beyond a full disk would end the process with SIGBUS."""
    from orchestrator.data.embeddings import Array

    with pytest.raises(OSError, match="No space left") as full:
        Array(disk.path, "image", (10_000, 1, 512), np.dtype("<f4"))
    assert full.value.errno == errno.ENOSPC
