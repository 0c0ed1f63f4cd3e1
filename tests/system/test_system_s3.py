"""The demo on S3: the very results of a local disk, every command from any machine, MLflow's files by the store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from s3_proxy import proxied
from system_orch import DEMO, QUARTER, Orch

from orchestrator.io.storage import Storage
from orchestrator.store.runs import list_runs

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300, func_only=True)]

STAGES = ("pairs", "clean", "teacher", "mid", "small", "scratch", "scores")


def made(demo):
    return {manifest.stage: manifest for manifest in demo.opened().manifests()}


@pytest.fixture
def on_s3(s3_demo, s3_env):
    """The finished demo, with this process's environment pointing to the server."""
    return s3_demo


@pytest.fixture
def elsewhere(on_s3, tmp_path) -> Orch:
    """The command on another machine: nothing of the first one's disk but the package."""
    places = {"ORCH_HOME": tmp_path / "home", "ORCH_CACHE": tmp_path / "cache", "HOME": tmp_path}
    environment = on_s3.orch.environment | {name: str(path) for name, path in places.items()}
    return Orch(tmp_path / "home", environment, cwd=tmp_path)


@pytest.mark.parametrize("stage", STAGES)
def test_fingerprint_and_content_are_those_of_a_local_disk(stage, demo, on_s3):
    here, there = made(demo)[stage], made(on_s3)[stage]
    assert there.fingerprint == here.fingerprint
    assert there.content_digest == here.content_digest
    declared = {name: file for name, file in there.files.items() if file.declared}
    assert declared == {name: file for name, file in here.files.items() if file.declared}


def test_every_file_in_the_store_is_what_its_manifest_says(on_s3):
    for manifest in made(on_s3).values():
        handle = on_s3.opened().handle(manifest.kind, manifest.fingerprint)
        for name in manifest.files:
            handle.read(name)


def test_nothing_but_events_and_logs_is_left_of_the_work(on_s3):
    left = {info.key.split("/")[3] for info in on_s3.opened().storage.list("work")}
    assert left <= {"events", "logs"}


def test_the_built_in_set_was_copied_into_the_store_and_the_artifact_says_so(on_s3):
    pairs, storage = made(on_s3)["pairs"], on_s3.opened().storage
    (place,) = pairs.summary["needs"]
    assert pairs.summary["shards"] == "copied into the store"
    assert sum(info.size for info in storage.list(f"{place}/shards")) > 13_000_000


def test_submitting_again_finds_everything_and_starts_nothing(elsewhere, on_s3):
    again = elsewhere("submit", DEMO, *on_s3.overrides, "--store", on_s3.store)
    assert "0 stages made, 7 were there already" in again.out + again.err
    assert not (elsewhere.home / "cluster.json").exists()
    print(f"submitting again on S3 took {again.wall_s:.2f} s")
    assert again.wall_s < 25  # 4 s on a quiet machine


@pytest.mark.parametrize(("command", "most"), [("plan", 12), ("submit", 30)])
def test_what_is_there_is_found_in_few_requests(command, most, elsewhere, on_s3, s3_server):
    with proxied(s3_server.endpoint) as line:
        environment = elsewhere.environment | {"AWS_ENDPOINT_URL": line.endpoint}
        arguments = [] if command == "plan" else ["--no-mlflow"]
        ended = elsewhere(command, DEMO, *on_s3.overrides, "--store", on_s3.store, *arguments, env=environment)
        print(f"{command}: {ended.wall_s:.1f} s, {dict(line.kinds())}", *line.requests, sep="\n")
    assert len(line.requests) <= most


COMMANDS = {
    "status": (["status"], ["done", "7/7"]),
    "status of a run": (["status", "{run}"], [*STAGES, "pretrain", "done"]),
    "logs": (["logs", "{run}", "teacher"], [""]),
    "show a run": (["show", "{run}"], [*STAGES, "tinyclip-progressive"]),
    "show a stage": (["show", "{run}/small"], ["distill 'small'", "weights.safetensors"]),
    "compare": (["compare", "{run}/small", "{run}/scratch"], ["init", "loss"]),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_on_another_machine_says_what_it_says_here(command, elsewhere, on_s3):
    words, expected = COMMANDS[command]
    run = list_runs(on_s3.opened())[-1].id
    said = elsewhere(*[word.format(run=run) for word in words], "--store", on_s3.store).out
    for text in expected:
        assert text in said


def test_another_machine_plans_everything_as_cached_though_the_package_lies_elsewhere(elsewhere, on_s3):
    planned = json.loads(elsewhere("plan", DEMO, *on_s3.overrides, "--store", on_s3.store, "--json").out)
    assert {stage["state"] for stage in planned["stages"]} == {"cached"}


def test_mlflows_files_lie_beside_the_store_and_can_be_downloaded(on_s3, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    on_s3.orch.delivered()
    client = MlflowClient(tracking_uri=f"sqlite:///{on_s3.orch.home}/mlflow.db")
    experiment = client.get_experiment_by_name("tinyclip-progressive")
    assert experiment.artifact_location.startswith(f"{on_s3.store}/mlartifacts/")
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    submission = next(run for run in runs if run.data.tags["orch.role"] == "submission")
    path = client.download_artifacts(submission.info.run_id, "recipe.yaml", str(tmp_path))
    assert yaml.safe_load(Path(path).read_text())["stages"]["small"]["steps"] == QUARTER["small"]
    kept = [info.key for info in Storage.open(on_s3.store).list("mlartifacts")]
    assert any(key.endswith("/recipe.yaml") for key in kept)
