"""Two `orch submit` of one recipe at the same moment: one cluster, one index, each stage made once, one history."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from system_orch import Orch, write_shards

from orchestrator.engine import cluster
from orchestrator.io.storage import Storage
from orchestrator.store.artifacts import Store

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240, func_only=True)]

STAGES = ("pairs", "clean", "clip")


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A short training on photographs of one's own."""
    (tmp_path / "photos").mkdir()
    write_shards(tmp_path / "photos")
    path = tmp_path / "short.yaml"
    path.write_text(f"""
name: short
stages:
  pairs: {{kind: dataset, source: {tmp_path / "photos"}}}
  clean: {{kind: curate, data: pairs, steps: [dedup]}}
  clip: {{kind: pretrain, data: clean, model: tiny, steps: 12, batch: 8, warmup_steps: 2, report_every: 2}}
""")
    return path


def submit_twice(command: Orch, recipe: Path, store: str) -> list[str]:
    """Two submissions at once; what each said."""
    processes = [command.start("submit", recipe, "--store", store) for _ in range(2)]
    return [said.out + said.err for said in (command.end(process, timeout_s=150) for process in processes)]


def made_once(said: list[str], store: str) -> None:
    made = [re.search(r"(\d+) stages made, (\d+) were there already", text) for text in said]
    assert all(made), said
    counts = [(int(found[1]), int(found[2])) for found in made]
    assert sum(made for made, _ in counts) == len(STAGES), counts
    manifests = {manifest.stage: manifest for manifest in Store.open(store).manifests()}
    assert sorted(manifests) == sorted(STAGES)
    storage = Storage.open(store)
    for manifest in manifests.values():
        prefix = f"{manifest.kind}/{manifest.fingerprint}/attempts"
        attempts = {info.key.removeprefix(f"{prefix}/").split("/")[0] for info in storage.list(prefix)}
        assert attempts == {manifest.attempt}
        assert manifest.generation == 1


def test_on_a_disk_and_with_no_cluster_yet_they_start_one_and_share_everything(orch, recipe, tmp_path):
    home = tmp_path / "home"
    alone = Orch(home, orch.environment | {"ORCH_HOME": str(home)})
    store = str(tmp_path / "store")
    try:
        said = submit_twice(alone, recipe, store)
        assert cluster.recorded(home) is not None
        alone.delivered()
    finally:
        alone.close()
    made_once(said, store)
    assert cluster.recorded(home) is None
    one_history(store)


def one_history(store: str) -> None:
    """MLflow has one run of the training, with each point of its curve once."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{store}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    clip = [run for run in runs if run.data.tags.get("orch.stage") == "clip" and "loss" in run.data.metrics]
    stages = [run for run in clip if run.data.tags.get("orch.role") == "stage"]
    assert len(stages) == 1
    points = [point.step for point in client.get_metric_history(stages[0].info.run_id, "loss")]
    assert points == sorted(set(points))
    assert points[-1] == 96


def test_on_s3_they_share_everything(orch, s3_env, recipe, s3_root, tmp_path):
    environment = orch.environment | s3_env.environment | {"ORCH_CACHE": str(tmp_path / "cache")}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path}/mlflow.db"
    said = submit_twice(Orch(orch.home, environment), recipe, s3_root)
    made_once(said, s3_root)
