"""Training stages on a real Ray: one worker inside a warm actor, several as a worker group. One cluster for all tests here."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from stages_train_tiny import MODEL, make_store, run_stage

from orchestrator.errors import DataError
from orchestrator.plan.types import Resources
from orchestrator.stages.train.config import Pretrain

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]
HERE = str(Path(__file__).parent)
PATHS = [HERE, str(Path(HERE).parents[1])]
COMMON = {"data": "pairs", "model": MODEL, "batch": 8, "warmup_steps": 2, "report_every": 2, "augment": {"scale": [1.0, 1.0]}}


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory):
    """A local Ray of its own, with a token of its own."""
    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text("0" * 64)
    before = dict(os.environ)
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_CHDIR_TO_TRIAL_DIR": "0"}
    os.environ |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "PYTHONPATH": os.pathsep.join(PATHS)}
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ |= before


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"))


def train(store, data, folder, fingerprint, workers=1, generation=1, should_stop=lambda: None, **fields):
    config = Pretrain.model_validate(COMMON | {"steps": 6, "resources": {"workers": workers}} | fields)
    resources = Resources(cpus=workers, workers=workers)
    return run_stage(store, config, folder, "pretrain", fingerprint, {"data": data}, generation, resources, should_stop)


def test_one_worker_in_an_actor_makes_the_same_bytes_as_without_ray(ray_cluster, stored, tmp_path):
    store, data = stored

    @ray_cluster.remote(num_cpus=1)
    class Warm:
        def train(self, folder, fingerprint):
            import torch

            torch.set_num_threads(1)
            started = time.perf_counter()
            handle = train(store, data, folder, fingerprint).handle
            return handle.manifest.content_digest, time.perf_counter() - started, sys.modules["ray"].is_initialized()

    actor = Warm.remote()
    digests = [ray_cluster.get(actor.train.remote(tmp_path, name * 64), timeout=120) for name in "ab"]
    import ray

    ray.shutdown  # the driver's own connection is not what decides: `train` below runs through Train as well
    here = train(store, data, tmp_path, "c" * 64).handle.manifest.content_digest
    assert {digest for digest, _, _ in digests} == {here}
    assert all(initialised for _, _, initialised in digests)
    assert digests[1][1] < 10
