"""Indexing spread over this machine's cores: the same index; whoever is killed loses the shards in flight alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from functools import partial
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from orchestrator.data import source
from orchestrator.data.source import Batch
from orchestrator.engine.index import INDEX, here, over_cores
from orchestrator.errors import DataError
from orchestrator.store.artifacts import Store

pytestmark = pytest.mark.timeout(120)

everywhere = partial(over_cores, small=0)


def write_pool(folder: Path, shards: int, samples: int = 20) -> Path:
    folder.mkdir()
    picture = BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(samples):
                members = (("png", picture.getvalue()), ("txt", f"thing {shard} {number}".encode()))
                for suffix, content in members:
                    info = tarfile.TarInfo(f"{number:04d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, BytesIO(content))
    return folder


def kept(store: Store, folder: Path, by: str = "") -> dict[str, bytes]:
    """What the store keeps of a source."""
    place = source.locate(f"{by}{folder}").place
    return {info.key: store.storage.get(info.key) for info in store.storage.list("sources") if place in info.key}


@pytest.mark.parametrize("by", ["", "headers:"], ids=["content", "headers"])
def test_many_processes_make_the_index_that_one_makes(tmp_path, by):
    pool = write_pool(tmp_path / "pool", 5)
    alone, together = (Store.open(str(tmp_path / name)) for name in ("alone", "together"))
    told: list[tuple[int, int]] = []
    source.prepare(f"{by}{pool}", alone)
    source.prepare(f"{by}{pool}", together, on_shard=lambda *of: told.append(of), spread=everywhere)
    assert kept(alone, pool, by) == kept(together, pool, by)
    assert told[-1] == (5, 5)


def test_a_small_source_is_indexed_by_this_process(tmp_path, monkeypatch):
    pool, store, made = write_pool(tmp_path / "pool", 3), Store.open(str(tmp_path / "store")), []
    original = source._write_part
    monkeypatch.setattr(source, "_write_part", lambda *args: (made.append(os.getpid()), original(*args)))
    said: list[str] = []
    here(INDEX, store.url, str(pool), said.append)
    assert made == [os.getpid()] * 3
    assert said[-1] == f"indexing {pool}: 3 of 3 shards"


def test_what_a_process_finds_wrong_is_told_as_if_it_were_this_one(tmp_path):
    pool = write_pool(tmp_path / "pool", 2)
    found = source.locate(str(pool))
    batches = [
        Batch(str(pool), "content", found.url, str(tmp_path / "store"), ((shard, f"part-{shard.key}"),))
        for shard in found.shards
    ]
    (pool / "00001.tar").write_bytes(b"another")
    with pytest.raises(DataError, match="changed while"):
        list(everywhere(batches))


INDEXES = """
import sys
from functools import partial
from orchestrator.data.source import prepare
from orchestrator.engine.index import over_cores
from orchestrator.store.artifacts import Store

if __name__ == "__main__":
    told = lambda done, total: print(done, total, flush=True)
    prepare(sys.argv[1], Store.open(sys.argv[2]), on_shard=told, spread=partial(over_cores, small=0))
"""


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_after_kill_9_no_process_is_left_and_what_was_indexed_is_used(tmp_path, monkeypatch):
    pool, store = write_pool(tmp_path / "pool", 40, samples=300), Store.open(str(tmp_path / "store"))
    script = tmp_path / "indexes.py"
    script.write_text(INDEXES)
    command = [sys.executable, str(script), str(pool), store.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    workers = children(process.pid)
    assert len(workers) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/stat").exists() for pid in workers):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.05)
    done = sum("/parts/" in info.key for info in store.storage.list("sources"))
    assert 3 <= done < 40
    made: list[str] = []
    original = source._write_part
    monkeypatch.setattr(
        source, "_write_part", lambda s, shard, *rest: (made.append(shard.key), original(s, shard, *rest))
    )
    digest = source.prepare(str(pool), store)
    assert len(made) == 40 - done
    assert digest == source.prepare(str(pool), Store.open(str(tmp_path / "fresh")))
    assert json.loads(store.storage.get(f"{source.locate(str(pool)).place}.json"))["rows"] == 40 * 300
