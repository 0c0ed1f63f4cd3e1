"""How artifacts came to be, as a real MLflow has it; and what the models registered there came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest

from orchestrator.errors import OrchError
from orchestrator.plan.types import Node, Plan, Resources
from orchestrator.recipe.schema import Config, Model
from orchestrator.store.artifacts import Manifest
from orchestrator.tracking import spool
from orchestrator.tracking.registered import registered
from orchestrator.tracking.tracker import Tracker


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """One database for the module: to make one takes seconds."""
    return tmp_path_factory.mktemp("registered")


@pytest.fixture
def place(home, monkeypatch) -> str:
    monkeypatch.setenv("ORCH_HOME", str(home / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (home / "store").mkdir(exist_ok=True)
    return str(home / "store")


class Trains(Config):
    outputs: ClassVar = {"default": Model}
    seed: int = 0
    """Of the weights."""


def test_the_run_of_a_stage_carries_how_its_artifact_came_to_be(place, monkeypatch):
    from mlflow import MlflowClient

    from orchestrator.tracking.deliver import deliver

    monkeypatch.setattr("orchestrator.tracking.tracker.start_delivery", lambda: None)
    node = Node("teacher", "pretrain", Trains(), (), Resources(), {}, "f" * 64, None)
    code = {"commit": "c" * 40, "dirty": True, "diff": "--- a\n", "diff_sha256": "d" * 64, "diff_truncated": False}
    facts = {"code": code, "packages": {"torch": "2.13"}, "host": {"name": "here"}, "cpus": 2.0, "gpus": 1.0}
    times = {"started": 1.0, "finished": 2.0, "wall_s": 1800.0}
    payload = {"config": {}, "external": ["ab" * 32]}
    summary = {"device": "cuda", "source": "emoji"}
    manifest = Manifest(
        "pretrain", "f" * 64, "a", 1, "teacher", "run-1", payload, {}, {}, "e" * 64, {}, summary, facts, **times
    )
    tracker = Tracker(place)
    tracker.run_started(Plan("demo", {"teacher": node}, {"name": "demo"}), "run-1", code)
    tracker.stage_started(node)
    tracker.stage_finished(node, manifest, cached=False)
    tracker.run_finished(ok=True)
    assert deliver()

    client = MlflowClient(tracking_uri=spool.tracking_uri(place))
    ids = [each.experiment_id for each in client.search_experiments()]
    (run,) = client.search_runs(ids, f"tags.`orch.fingerprint` = '{'f' * 64}'")
    tags = run.data.tags
    assert tags["mlflow.source.git.commit"] == "c" * 40
    assert tags["mlflow.source.name"] == "orch"
    assert (tags["orch.dirty"], tags["orch.diff_sha256"]) == ("true", "d" * 64)
    assert (tags["orch.host"], tags["orch.device"]) == ("here", "cuda")
    assert (tags["orch.cpu_hours"], tags["orch.gpu_hours"]) == ("1", "0.5")
    assert json.loads(tags["orch.packages"]) == {"torch": "2.13"}
    assert json.loads(tags["orch.seeds"]) == {"seed": 0}
    (data,) = client.get_run(run.info.run_id).inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("emoji", ("ab" * 32)[:36])
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"uncommitted.diff"}


def test_every_way_to_register_a_model_leads_to_what_it_came_from(place, monkeypatch):
    from mlflow import MlflowClient

    # MLflow looks a `models:/` address up where this variable says.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", spool.tracking_uri(place))
    client = MlflowClient()
    experiment = client.create_experiment("registered")
    stage = client.create_run(experiment, tags={"orch.fingerprint": "aa" * 32, "orch.run": "run-1"})
    submission = client.create_run(experiment, tags={"orch.run": "run-2"})
    stranger = client.create_run(experiment)
    model = client.create_logged_model(
        experiment, name="m", source_run_id=submission.info.run_id, tags={"orch.fingerprint": "bb" * 32}
    )
    for name in ("by-run", "by-model", "by-submission", "by-hand", "foreign", "lost"):
        client.create_registered_model(name)
    source = "s3://bucket/anything"
    client.create_model_version("by-run", source, run_id=stage.info.run_id)
    client.create_model_version("by-model", f"models:/{model.model_id}", model_id=model.model_id)
    client.create_model_version("by-submission", source, run_id=submission.info.run_id)
    client.create_model_version("by-hand", source, tags={"orch.fingerprint": "cc" * 32})
    client.create_model_version("foreign", source, run_id=stranger.info.run_id)
    client.create_model_version("lost", source, run_id="0" * 32)
    assert registered(place) == {
        "aa" * 32: "MLflow's model by-run, version 1",
        "bb" * 32: "MLflow's model by-model, version 1",
        "run-2": "MLflow's model by-submission, version 1",
        "cc" * 32: "MLflow's model by-hand, version 1",
    }


def test_a_store_that_no_tracking_has_seen_has_no_registered_models_and_gets_no_database(place, tmp_path):
    assert registered(str(tmp_path)) == {}
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_away_is_said_with_the_way_out(place, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with pytest.raises(OrchError, match="cannot be asked") as caught:
        registered(place)
    assert "--no-mlflow" in caught.value.remedy
