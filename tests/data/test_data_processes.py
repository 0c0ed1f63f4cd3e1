"""Loader processes: the same batches as threads make, errors and counts included; none outlives its parent."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import deque
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from data_shards import image, open_store, write_samples, write_shard
from test_data_loader import SETTINGS, facts, make_dataset, same

from orchestrator.data.bad import Tally
from orchestrator.data.captions import CaptionPolicy, Survival
from orchestrator.data.dataset import Dataset
from orchestrator.data.loader import Loader
from orchestrator.errors import DataError


def reopened(store: str) -> Dataset:
    return Dataset.open(open_store(store).handle("dataset", "f1"))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    """27 good samples, and one whose image breaks off."""
    folder = tmp_path_factory.mktemp("processes")
    shards = write_samples(folder / "pets", range(27), 3, facts)
    write_shard(shards / "00009.tar", [("broken.png", image(60, size=64)[:80]), ("broken.txt", b"broken")])
    make_dataset(folder, str(shards))
    return str(folder / "store")


def run(store: str, count: int, **options) -> tuple[list, Tally, Loader]:
    dataset = reopened(store)
    tally = Tally(dataset.name, len(dataset), 1)
    settings = {**SETTINGS, "tally": tally, "reopen": partial(reopened, store), **options}
    with Loader(dataset, **settings) as loader:
        return list(itertools.islice(loader, count)), tally, loader


@pytest.mark.parametrize(("processes", "read"), [(2, "exact"), (3, "block")])
def test_processes_make_the_batches_that_threads_make(store, processes, read):
    wanted, counted, _ = run(store, 9, read=read)
    made, tally, loader = run(store, 9, read=read, processes=processes)
    assert all(map(same, wanted, made))
    assert tally.found.as_json() == counted.found.as_json() != {}
    assert loader.traffic[0] > 0
    assert loader.wait_s > 0


def test_stored_views_and_joined_captions_come_through_processes(store):
    class Stored:
        num_views, seed = 3, 7
        augment, captions = SETTINGS["augment"], CaptionPolicy(join=["original", "keywords"])

        def features(self, uids, views):
            return {"image": torch.tensor([[float(view), float(int(uid[:2], 16))] for uid, view in zip(uids, views)])}

    counts = [Survival(), Survival()]
    wanted, made = (
        run(store, 4, processes=processes, stored=Stored(), survival=count)[0]
        for processes, count in zip((0, 2), counts)
    )
    assert all(map(same, wanted, made))
    assert all(torch.equal(a.embeddings["image"], b.embeddings["image"]) for a, b in zip(wanted, made))
    assert counts[0] == counts[1]
    assert counts[0].shown == 4 * 2 * SETTINGS["batch"] == counts[0].with_last == counts[0].whole


def fails() -> Dataset:
    raise DataError("the shards are gone", "put them back")


def test_what_goes_wrong_in_a_process_is_told_by_the_loader(store):
    with pytest.raises(DataError, match="the shards are gone"):
        run(store, 1, processes=1, reopen=fails)


def test_a_process_that_is_killed_ends_the_training_with_a_remedy(store):
    dataset = reopened(store)
    with Loader(
        dataset, **SETTINGS, tally=Tally("pets", 28, 1), processes=2, reopen=partial(reopened, store)
    ) as loader:
        batches = iter(loader)
        next(batches)
        children = psutil.Process().children()
        assert len(children) >= 2
        os.kill(loader._maker._children[1].process.pid, signal.SIGKILL)
        with pytest.raises(DataError, match=r"loader process ended by itself \(exit code -9\)"):
            deque(batches, maxlen=0)


PARENT = """
import sys, time
sys.path[:0] = [{tests!r}]
from functools import partial
from test_data_loader import SETTINGS
from test_data_processes import reopened
from orchestrator.data.bad import Tally
from orchestrator.data.loader import Loader
if __name__ == "__main__":
    loader = Loader(reopened({store!r}), **SETTINGS, tally=Tally("pets", 28, 1), processes=2,
                    reopen=partial(reopened, {store!r}))
    next(iter(loader))
    print(*(child.process.pid for child in loader._maker._children), flush=True)
    time.sleep(60)
"""


def test_children_end_with_a_parent_that_is_killed(store, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(tests=str(Path(__file__).parent), store=store))
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(children) == 2
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while any(child.is_running() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(child.is_running() for child in children)
