"""Training stages on a real Ray: one worker inside a warm actor, several as a worker group. One cluster for all tests
here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from stages_train_tiny import MODEL, make_store, run_stage

from orchestrator.engine import cluster
from orchestrator.models.artifact import load
from orchestrator.plan.types import Resources
from orchestrator.stages.train.config import Pretrain
from orchestrator.store.checkpoints import CheckpointStore
from orchestrator.store.events import EventReader

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]
HERE = str(Path(__file__).parent)
ROOT = str(Path(__file__).parents[2])
COMMON = {
    "data": "pairs",
    "model": MODEL,
    "batch": 8,
    "warmup_steps": 2,
    "report_every": 2,
    "augment": {"scale": [1.0, 1.0]},
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"))


def train(store, data, folder, fingerprint, workers=1, generation=1, should_stop=lambda: None, **fields):
    config = Pretrain.model_validate(COMMON | {"steps": 6, "resources": {"workers": workers}} | fields)
    resources = Resources(cpus=workers, workers=workers)
    return run_stage(
        store, config, folder, "pretrain", fingerprint, {"data": data}, generation, resources, should_stop
    )


def test_one_worker_in_an_actor_makes_the_bytes_it_makes_without_ray(ray_cluster, stored, tmp_path):
    """A fit in a warm actor is a call of Ray Train's local mode: nothing is started."""
    store, data = stored

    @ray_cluster.remote(num_cpus=1)
    class Warm:
        def train(self, folder, fingerprint):
            started = time.perf_counter()
            done = train(store, data, folder, fingerprint)
            took_s = time.perf_counter() - started
            return done.handle.manifest.content_digest, took_s, [event["type"] for event in done.events.seen]

    actor = Warm.remote()
    first, second = (ray_cluster.get(actor.train.remote(tmp_path, name * 64), timeout=150) for name in "ab")
    code = f"""
import sys
from pathlib import Path
from orchestrator.store.artifacts import Store
from test_stages_train_ray import train
store = Store.open({store.url!r})
data = store.handle("dataset", {data.manifest.fingerprint!r})
print(train(store, data, Path({str(tmp_path)!r}), "c" * 64).handle.manifest.content_digest, "ray" in sys.modules)
"""
    without = subprocess.check_output(
        [sys.executable, "-c", code],
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([HERE, ROOT])},
    )
    assert without.split() == [first[0], "False"]
    assert second[0] == first[0]
    assert second[1] < 10
    assert first[2].count("report") == 3


def test_two_workers_train_what_one_trains_and_tell_it_through_the_store(ray_cluster, stored, tmp_path):
    store, data = stored
    alone = train(store, data, tmp_path, "1" * 64)
    pair = train(store, data, tmp_path, "2" * 64, workers=2)
    assert pair.outcome.summary["workers"] == 2
    one, other = (load(done.handle)[0].state_dict() for done in (alone, pair))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-3, msg=name)
    told = EventReader(store.storage, "2" * 64).poll()
    assert [event["samples"] for event in told if event["type"] == "report"] == [16, 32, 48]
    assert not [info.key for info in store.storage.list(f"work/{'2' * 64}") if "/workers-" in info.key]


def ranks() -> list[psutil.Process]:
    """Ray Train's worker processes on this cluster; Ray calls them by what they did last."""
    children = psutil.Process(cluster.recorded().pid).children(recursive=True)
    return [process for process in children if "".join(process.cmdline()).startswith("ray::RayTrainWorker")]


def test_a_rank_that_is_told_to_end_stops_all_with_a_checkpoint_from_which_the_training_goes_on(
    ray_cluster, stored, tmp_path
):
    store, data = stored
    settings = {"workers": 2, "steps": 200, "report_every": 20, "checkpoint_every": 20}
    places = CheckpointStore(store.storage, "3" * 64, 1)
    told: list[psutil.Process] = []

    def tell() -> None:
        while not told and not over.wait(0.05):
            if places.latest() is not None:
                told.append(ranks()[-1])
                told[0].terminate()

    over = threading.Event()
    thread = threading.Thread(target=tell)
    thread.start()
    try:
        done = train(store, data, tmp_path, "3" * 64, **settings)
    finally:
        over.set()
        thread.join()
    assert told
    assert done.outcome.stopped == "preempted"
    kept = places.latest()
    assert kept is not None
    assert kept.samples == done.outcome.summary["samples"] < 200 * COMMON["batch"]
    resumed = train(store, data, tmp_path, "3" * 64, generation=2, **settings)
    assert resumed.outcome.summary["resumed_at_samples"] == kept.samples
    reports = [e["samples"] for e in EventReader(store.storage, "3" * 64).poll() if e["type"] == "report"]
    assert reports == list(range(160, 200 * 8 + 1, 160))
