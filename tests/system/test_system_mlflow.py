"""What the demo left in MLflow, read as MLflow's own pages read it: comparison, lineage, curves, provenance."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import yaml
from system_orch import QUARTER

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300, func_only=True)]

COMPARED = ("parameters", "parameters_without_token_table", "samples_per_s", "zeroshot.id.top1")


@pytest.fixture(scope="module")
def mlflow(orch, demo) -> SimpleNamespace:
    """The client, and the demo's runs by stage; `None` is the submission's."""
    from mlflow import MlflowClient

    orch.delivered()
    client = MlflowClient(tracking_uri=f"sqlite:///{demo.store}/mlflow.db")
    experiment = client.get_experiment_by_name("tinyclip-progressive")
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    submission = next(run for run in runs if run.data.tags["orch.role"] == "submission")
    stages = {
        run.data.tags["orch.stage"]: run
        for run in runs
        if run.data.tags["orch.role"] == "stage" and run.data.tags["mlflow.parentRunId"] == submission.info.run_id
    }
    return SimpleNamespace(client=client, submission=submission, stages=stages)


def test_the_submission_is_a_run_with_a_child_a_stage_and_the_resolved_recipe(mlflow, demo, tmp_path):
    assert set(mlflow.stages) == {"pairs", "clean", *QUARTER, "scores"}
    assert {run.info.status for run in (mlflow.submission, *mlflow.stages.values())} == {"FINISHED"}
    path = mlflow.client.download_artifacts(mlflow.submission.info.run_id, "recipe.yaml", str(tmp_path))
    with open(path) as file:
        recipe = yaml.safe_load(file)
    assert recipe["stages"]["small"]["steps"] == QUARTER["small"]
    assert mlflow.stages["small"].data.params["steps"] == str(QUARTER["small"])


@pytest.mark.parametrize("stage", ["teacher", "mid", "small"])
def test_comparing_the_models_runs_shows_size_speed_and_quality(stage, mlflow):
    metrics = mlflow.stages[stage].data.metrics
    for name in COMPARED:
        assert metrics[name] >= 0
    assert any(name.startswith("retrieval.") and name.endswith(".r1") for name in metrics)


def test_compared_figures_are_those_of_the_evaluation(mlflow, demo):
    scores = mlflow.stages["scores"].data.metrics
    for stage in QUARTER:
        assert mlflow.stages[stage].data.metrics["zeroshot.id.top1"] == scores[f"{stage}/zeroshot.id.top1"]


def test_lineage_leads_from_the_smallest_model_to_the_data_set(mlflow):
    client = mlflow.client
    (output,) = mlflow.stages["small"].outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    seen: dict[str, list[str]] = {}
    waiting = [model]
    while waiting:
        made = waiting.pop()
        run = client.get_run(made.source_run_id)
        parents = [client.get_logged_model(i.model_id) for i in (run.inputs.model_inputs or [])]
        seen[made.name] = sorted(parent.name for parent in parents)
        waiting += [parent for parent in parents if parent.name not in seen]
        (data,) = [d.dataset for d in run.inputs.dataset_inputs]
        assert data.name == "clean"
        assert data.digest == mlflow_digest(mlflow, "clean")
    assert seen == {"small": ["mid", "teacher"], "mid": ["teacher"], "teacher": []}
    (pairs,) = [d.dataset for d in mlflow.stages["clean"].inputs.dataset_inputs]
    assert pairs.name == "pairs"


def mlflow_digest(mlflow, stage: str) -> str:
    """The digest under which a stage's data set is known to the runs that use it."""
    used = [d.dataset for run in mlflow.stages.values() if run.inputs for d in run.inputs.dataset_inputs]
    (digest,) = {dataset.digest for dataset in used if dataset.name == stage}
    return digest


@pytest.mark.parametrize("stage", QUARTER)
def test_a_loss_curve_is_keyed_by_samples_and_has_no_point_twice(stage, mlflow):
    points = [m.step for m in mlflow.client.get_metric_history(mlflow.stages[stage].info.run_id, "loss")]
    assert len(points) >= 3
    assert points == sorted(set(points))
    assert points[-1] == QUARTER[stage] * 128


def test_logged_models_carry_their_figures(mlflow):
    (output,) = mlflow.stages["small"].outputs.model_outputs
    model = mlflow.client.get_logged_model(output.model_id)
    shown = {metric.key: metric.value for metric in model.metrics}
    assert model.status.value == "READY"
    for name in COMPARED:
        assert shown[name] == mlflow.stages["small"].data.metrics[name]


def test_a_second_submission_points_to_the_first_ones_runs(orch, demo, mlflow):
    orch("submit", *demo.recipe)
    orch.delivered()
    client = mlflow.client
    runs = client.search_runs([mlflow.submission.info.experiment_id], "tags.`orch.role` = 'pointing'")
    pointing = {run.data.tags["orch.stage"]: run for run in runs}
    small = pointing["small"]
    assert small.data.tags["orch.points_to"] == mlflow.stages["small"].info.run_id
    assert small.data.metrics["zeroshot.id.top1"] == mlflow.stages["small"].data.metrics["zeroshot.id.top1"]
    assert small.outputs.model_outputs[0].model_id == mlflow.stages["small"].outputs.model_outputs[0].model_id


def test_data_set_sources_say_where_the_artifact_is(mlflow, demo):
    (used,) = mlflow.stages["teacher"].inputs.dataset_inputs
    assert json.loads(used.dataset.source)["store"] == demo.store
