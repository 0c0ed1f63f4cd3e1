"""A real training, interrupted and resumed, whose MLflow server hangs all the while: one run, one whole history."""

from __future__ import annotations

import os
import signal
import socket

import pytest
from tracking_toy import stage_run

from orchestrator.api import submit
from orchestrator.engine.local import LocalExecutor
from orchestrator.engine.observe import Observer
from orchestrator.store.artifacts import Store
from orchestrator.store.events import EventReader, curves
from orchestrator.tracking import spool

pytestmark = pytest.mark.timeout(200)

RECIPE = """
name: small
stages:
  pairs: {kind: dataset, source: emoji, split: {unseen: 0.04, held: 0.56}}
  model: {kind: pretrain, data: pairs, model: emoji-64x3, steps: 24, batch: 16, report_every: 1, checkpoint_every: 4}
"""


class Interrupts(Observer):
    """Presses Ctrl-C when so many samples were reported; keeps the generations' starts."""

    def __init__(self, samples: int) -> None:
        self.samples, self.pressed = samples, False

    def stage_event(self, node, event):
        if event["type"] == "report" and event["samples"] >= self.samples and not self.pressed:
            self.pressed = True
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def hanging(monkeypatch):
    """MLflow's address is a port that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        uri = f"http://127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri


def test_a_training_in_two_attempts_under_a_hanging_server_is_told_whole_and_once(
    client, hanging, tmp_path, monkeypatch
):
    from orchestrator.tracking.deliver import deliver

    recipe, store = tmp_path / "recipe.yaml", str(tmp_path / "store")
    recipe.write_text(RECIPE)
    first = submit(recipe, store=store, observers=[Interrupts(64)], executor=LocalExecutor(), quiet=True)
    assert first.stages["model"].state == "stopped"
    second = submit(recipe, store=store, executor=LocalExecutor(), quiet=True)
    assert second.ok, second.failed
    assert len(spool.pending()) == 2
    assert {one.tracking_uri for one in spool.waiting()} == {hanging}

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    for folder in spool.pending():
        text = (folder / "header.json").read_text()
        (folder / "header.json").write_text(text.replace(hanging, spool.tracking_uri(store)))
    assert deliver()

    fingerprint = second.manifests["model"].fingerprint
    told = EventReader(Store.open(store).storage, fingerprint)
    events = told.numbered()
    assert len({generation for generation, _ in events}) == 2
    drawn = curves([event for _, event in events])
    (run,) = stage_run(client, fingerprint)
    assert run.info.status == "FINISHED"
    for name, curve in drawn.items():
        history = [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, name)]
        assert [step for step, _ in history] == [samples for samples, _ in curve], name
    losses = [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, "loss")]
    assert losses == drawn["loss"]
