"""Runs, curves, models and lineage as MLflow shows them, written to a real SQLite back end through the spool."""

from __future__ import annotations

import pytest
from tracking_toy import stage_run, submission

from orchestrator.tracking import spool


def test_compare_and_lineage_are_there_without_set_up(client, tmp_path):
    from orchestrator.tracking.deliver import deliver

    submission("run-1", str(tmp_path / "store"), losses={100: 2.0, 200: 1.0})
    assert deliver()
    assert spool.pending() == []

    (small,) = stage_run(client, "small-fingerprint")
    assert small.data.metrics["parameters"] == 2.0
    assert small.data.metrics["samples_per_s"] == 9.0
    assert small.data.metrics["zeroshot.id.top1"] == 0.4
    assert small.data.params["learning_rate"] == "0.2"
    assert small.info.status == "FINISHED"
    assert [(p.step, p.value) for p in client.get_metric_history(small.info.run_id, "loss")] == [
        (100, 2.0),
        (200, 1.0),
    ]

    (teacher,) = stage_run(client, "teacher-fingerprint")
    taught = client.get_logged_model(small.inputs.model_inputs[0].model_id)
    assert taught.source_run_id == teacher.info.run_id
    assert {m.key: m.value for m in taught.metrics}["zeroshot.id.top1"] == 0.5
    assert teacher.inputs.dataset_inputs[0].dataset.name == "pairs"
    assert teacher.outputs.model_outputs[0].model_id == taught.model_id
    parent = client.get_run(small.data.tags["mlflow.parentRunId"])
    assert parent.data.tags["orch.run"] == "run-1"


def test_a_resumed_training_has_one_history_without_doubled_points(client, tmp_path):
    from orchestrator.tracking.deliver import deliver

    store = str(tmp_path / "store")
    submission("run-1", store, losses={100: 2.0, 200: 1.0})
    assert deliver()
    submission("run-2", store, losses={100: 2.0, 200: 1.0, 300: 0.5})
    assert deliver()

    (own,) = stage_run(client, "small-fingerprint")
    points = [(p.step, p.value) for p in client.get_metric_history(own.info.run_id, "loss")]
    assert points == [(100, 2.0), (200, 1.0), (300, 0.5)]
    assert own.data.tags["orch.run"] == "run-1"


def test_a_cached_stage_is_a_child_that_points_to_its_own_run(client, tmp_path):
    from orchestrator.tracking.deliver import deliver

    store = str(tmp_path / "store")
    submission("run-1", store, losses={100: 2.0})
    submission("run-2", store, losses={}, cached=True)
    assert deliver()

    (own,) = stage_run(client, "small-fingerprint")
    (pointing,) = stage_run(client, "small-fingerprint", role="pointing")
    assert pointing.data.tags["orch.points_to"] == own.info.run_id
    assert pointing.data.tags["orch.run"] == "run-2"
    assert pointing.data.metrics["zeroshot.id.top1"] == 0.4
    assert [m.model_id for m in pointing.outputs.model_outputs] == [m.model_id for m in own.outputs.model_outputs]


@pytest.mark.parametrize("cursor", [None, b"", b'{"offset": 12'], ids=["killed before it was noted", "empty", "torn"])
def test_delivering_an_operation_twice_changes_nothing(cursor, client, tmp_path):
    from orchestrator.tracking.deliver import Delivery

    store = str(tmp_path / "store")
    submission("run-1", store, losses={100: 2.0, 200: 1.0})
    (folder,) = spool.pending()
    Delivery(folder).step()
    (folder / "cursor.json").unlink()
    if cursor is not None:
        (folder / "cursor.json").write_bytes(cursor)  # what a power cut left of it
    Delivery(folder).step()

    (own,) = stage_run(client, "small-fingerprint")
    assert len(client.get_metric_history(own.info.run_id, "loss")) == 2
    assert len(own.outputs.model_outputs) == 1
    assert len(client.search_runs([own.info.experiment_id])) == 5


def test_nothing_is_lost_while_the_server_is_away(client, tmp_path, monkeypatch):
    from orchestrator.tracking.deliver import deliver

    store = str(tmp_path / "store")
    submission("run-1", store, losses={100: 2.0})
    (folder,) = spool.pending()
    good = (folder / "header.json").read_text()
    (folder / "header.json").write_text(good.replace(spool.tracking_uri(store), "http://127.0.0.1:9"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr("orchestrator.tracking.spool.is_left", lambda folder: True)
    assert not deliver(patience_s=0)
    assert spool.pending() == [folder]
    (folder / "header.json").write_text(good)
    assert deliver()
    assert len(stage_run(client, "small-fingerprint")) == 1
