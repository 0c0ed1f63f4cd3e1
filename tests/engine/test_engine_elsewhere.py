"""Workers on nodes that do not see what the submitter sees: refused with the node, the path and the way out."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest
import toy_kinds
from test_engine_scheduler import scheduler

from orchestrator.engine.local import LocalExecutor
from orchestrator.errors import UserError
from orchestrator.stages.models import load_input
from orchestrator.store.artifacts import Store


def test_a_worker_that_sees_another_folder_under_the_stores_name_writes_nothing_there(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    class OtherNode(LocalExecutor):
        def submit(self, job):
            super().submit(replace(job, store=str(elsewhere)))

    trace = tmp_path / "trace"
    trace.mkdir()
    running = scheduler(toy_kinds.plan({"a": ()}, trace), Store.open(str(tmp_path / "store")), OtherNode())
    status = running.run().stages["a"]
    assert status.state == "failed"
    assert socket.gethostname() in status.reason
    assert "does not see the submitter's store" in status.reason
    assert "s3://" in status.remedy
    assert list(elsewhere.iterdir()) == []


def test_a_models_folder_that_the_worker_does_not_see_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read by the worker on node") as refused:
        load_input({}, {"teacher": str(tmp_path / "model")}, "teacher", "cpu")
    assert str(tmp_path / "model") in refused.value.message
    assert "`teacher`" in refused.value.message
