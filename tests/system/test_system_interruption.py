"""A training that is killed or stopped in the middle goes on when submitted again, to the very same weights."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from system_orch import DEMO, QUARTER, Orch, overrides, wait

from orchestrator.store.artifacts import Manifest, Store
from orchestrator.store.checkpoints import MARKER
from orchestrator.store.events import EventReader
from orchestrator.store.runs import find_run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

STEPS, BATCH, EVERY = 80, 64, 5
SETTINGS = overrides(
    **{f"{stage}__steps": steps for stage, steps in QUARTER.items() if stage != "small"},
    small__steps=STEPS,
    small__batch=BATCH,
    small__checkpoint_every=EVERY,
    small__report_every=EVERY,
)
WEIGHTS = "weights.safetensors"


def arguments(store: str) -> tuple[str | Path, ...]:
    """The training that is disturbed: teacher and mid are there already."""
    return ("submit", DEMO, *SETTINGS, "--until", "small", "--store", store)


def begun(orch: Orch, store: str, more: tuple[str, ...] = ()) -> subprocess.Popen:
    """A submission whose training has kept a first checkpoint."""
    process = orch.start(*arguments(store), *more)

    def kept() -> bool:
        assert process.poll() is None, process.communicate()
        return any(Path(store, "work").glob(f"*/*/ckpt-*/{MARKER}"))

    wait(kept, 120, "a first checkpoint")
    return process


def small(store: str) -> Manifest | None:
    """The disturbed stage's manifest, read anew."""
    opened = Store.open(store)
    status = find_run(opened).state()["stages"]["small"]
    return opened.find(status["kind"], status["fingerprint"])


@pytest.fixture(scope="module")
def undisturbed(orch, demo, tmp_path_factory) -> str:
    """SHA-256 of the weights of a training that nobody disturbs."""
    store = demo.copy(tmp_path_factory.mktemp("undisturbed"))
    orch(*arguments(store), "--no-mlflow", timeout_s=150)
    manifest = small(store)
    assert "resumed_at_samples" not in manifest.summary
    return manifest.files[WEIGHTS].sha256


def kill_submitter(orch: Orch, process: subprocess.Popen, store: str) -> str:
    process.kill()
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    return "interrupted"


def interrupt(orch: Orch, process: subprocess.Popen, store: str) -> str:
    process.send_signal(signal.SIGINT)
    said = orch.end(process, exit_code=130, timeout_s=60)
    assert "stopping: running stages checkpoint first; Ctrl-C again ends them now" in said.out + said.err
    assert f"nothing is lost, go on with: orch submit {DEMO}" in said.out + said.err
    assert "Traceback" not in said.out + said.err
    return "stopped"


def interrupt_twice(orch: Orch, process: subprocess.Popen, store: str) -> str:
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    said = orch.end(process, exit_code=130, timeout_s=30)
    assert "Traceback" not in said.out + said.err
    return "stopped"


def cancel(orch: Orch, process: subprocess.Popen, store: str) -> str:
    assert "asked to stop; its stages checkpoint first" in orch("cancel", "--store", store).out
    said = orch.end(process, exit_code=130, timeout_s=60)
    assert f"nothing is lost, go on with: orch submit {DEMO}" in said.out + said.err
    return "stopped"


DISTURBANCES = {each.__name__: each for each in (kill_submitter, interrupt, interrupt_twice, cancel)}


@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_submitting_again_goes_on_from_the_checkpoint_to_the_same_weights(disturbance, orch, copy, undisturbed):
    process = begun(orch, copy, ("--no-mlflow",))
    state = DISTURBANCES[disturbance](orch, process, copy)
    assert small(copy) is None
    assert find_run(Store.open(copy)).id in orch("status", "--store", copy).out
    assert state in orch("status", "--store", copy).out
    orch(*arguments(copy), "--no-mlflow", timeout_s=150)
    manifest = small(copy)
    assert manifest.generation == 2
    assert manifest.summary["resumed_at_samples"] >= EVERY * BATCH
    assert [e["samples"] for e in events(copy, manifest) if e["type"] == "resumed"] == [
        manifest.summary["resumed_at_samples"]
    ]
    assert manifest.files[WEIGHTS].sha256 == undisturbed


def test_a_killed_worker_is_started_again_and_goes_on_to_the_same_weights(orch, copy, undisturbed):
    process = begun(orch, copy, ("--no-mlflow",))
    (worker,) = orch.workers("small")
    os.kill(worker.pid, signal.SIGKILL)
    said = orch.end(process, timeout_s=150)
    assert "small: waiting  its worker died" in said.out + said.err
    manifest = small(copy)
    assert manifest.generation == 2
    assert manifest.summary["resumed_at_samples"] >= EVERY * BATCH
    assert manifest.files[WEIGHTS].sha256 == undisturbed


def test_a_resumed_trainings_curve_in_mlflow_has_every_point_once(orch, copy):
    from mlflow import MlflowClient

    begun_there = begun(orch, copy)
    kill_submitter(orch, begun_there, copy)
    orch(*arguments(copy), timeout_s=150)
    orch.delivered()
    client = MlflowClient(tracking_uri=f"sqlite:///{copy}/mlflow.db")
    experiments = [each.experiment_id for each in client.search_experiments()]
    query = f"tags.`orch.fingerprint` = '{small(copy).fingerprint}' and tags.`orch.role` = 'stage'"
    (run,) = client.search_runs(experiments, query)
    points = [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")]
    assert points[: STEPS // EVERY] == list(range(EVERY * BATCH, STEPS * BATCH + 1, EVERY * BATCH))
    assert run.info.status == "FINISHED"


def events(store: str, manifest: Manifest) -> list[dict]:
    return EventReader(Store.open(store).storage, manifest.fingerprint).poll()
