"""A training that is killed or stopped in the middle goes on when submitted again, to the very same weights."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from system_orch import DEMO, QUARTER, Orch, overrides, wait

from orchestrator.store.artifacts import Manifest, Store
from orchestrator.store.checkpoints import MARKER
from orchestrator.store.events import EventReader
from orchestrator.store.runs import find_run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240, func_only=True)]

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


def begun(orch: Orch, store: str, *more: str) -> subprocess.Popen:
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


def interrupt(orch: Orch, process: subprocess.Popen, store: str) -> None:
    process.send_signal(signal.SIGINT)
    said = orch.end(process, exit_code=130, timeout_s=60)
    assert "stopping: running stages checkpoint first; Ctrl-C again ends them now" in said.out + said.err
    assert f"nothing is lost, go on with: orch submit {DEMO}" in said.out + said.err
    assert "Traceback" not in said.out + said.err


def cancel(orch: Orch, process: subprocess.Popen, store: str) -> None:
    assert "asked to stop; its stages checkpoint first" in orch("cancel", "--store", store).out
    said = orch.end(process, exit_code=130, timeout_s=60)
    assert f"nothing is lost, go on with: orch submit {DEMO}" in said.out + said.err


def goes_on(orch: Orch, store: str, weights: str, *more: str) -> Manifest:
    """Submit again: the training goes on from a checkpoint, and its weights are those of an undisturbed one."""
    assert small(store) is None
    orch(*arguments(store), *more, timeout_s=150)
    manifest = small(store)
    assert manifest is not None
    assert manifest.generation == 2
    samples = manifest.summary["resumed_at_samples"]
    assert samples >= EVERY * BATCH
    events = EventReader(Store.open(store).storage, manifest.fingerprint).poll()
    assert [event["samples"] for event in events if event["type"] == "resumed"] == [samples]
    assert manifest.files[WEIGHTS].sha256 == weights
    return manifest


@pytest.mark.parametrize("stop", [interrupt, cancel])
def test_a_training_that_was_asked_to_stop_goes_on_when_submitted_again(stop, orch, copy, undisturbed):
    stop(orch, begun(orch, copy, "--no-mlflow"), copy)
    assert "stopped" in orch("status", "--store", copy).out
    goes_on(orch, copy, undisturbed, "--no-mlflow")


def test_after_kill_9_of_the_submitter_the_training_goes_on_and_its_curve_has_every_point_once(
    orch, copy, undisturbed
):
    process = begun(orch, copy)
    process.kill()
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert "interrupted" in orch("status", "--store", copy).out
    manifest = goes_on(orch, copy, undisturbed)

    from mlflow import MlflowClient

    orch.delivered()
    client = MlflowClient(tracking_uri=f"sqlite:///{copy}/mlflow.db")
    query = f"tags.`orch.fingerprint` = '{manifest.fingerprint}' and tags.`orch.role` = 'stage'"
    (run,) = client.search_runs([each.experiment_id for each in client.search_experiments()], query)
    points = [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")]
    assert points == list(range(EVERY * BATCH, STEPS * BATCH + 1, EVERY * BATCH))
    assert run.info.status == "FINISHED"


def test_a_worker_that_was_killed_is_replaced_and_goes_on_to_the_same_weights(orch, copy, undisturbed):
    process = begun(orch, copy, "--no-mlflow")
    (worker,) = orch.workers("small")
    worker.kill()
    said = orch.end(process, timeout_s=150)
    assert "small: waiting  its worker died" in said.out + said.err
    manifest = small(copy)
    assert manifest is not None
    assert manifest.generation == 2
    assert manifest.summary["resumed_at_samples"] >= EVERY * BATCH
    assert manifest.files[WEIGHTS].sha256 == undisturbed


@pytest.mark.parametrize("name", ["raylet", pytest.param("gcs_server", marks=pytest.mark.slow)])
def test_a_local_cluster_that_was_killed_is_replaced_under_the_run_and_leaves_no_process(
    name, orch, copy, undisturbed
):
    process = begun(orch, copy, "--no-mlflow")
    before = orch.cluster()
    old = psutil.Process(before.pid).children(recursive=True)
    (killed,) = [each for each in old if each.name() == name]
    killed.kill()
    said = orch.end(process, timeout_s=150)
    assert "the local Ray cluster has ended: going on in a fresh one" in said.out + said.err
    assert "small: waiting  its worker died (the Ray cluster ended)" in said.out + said.err
    assert "Traceback" not in said.out + said.err
    assert "[state-dump]" not in said.out + said.err
    assert orch.cluster().pid != before.pid
    assert psutil.wait_procs(old, timeout=10)[1] == []
    manifest = small(copy)
    assert manifest is not None
    assert manifest.generation == 2
    assert manifest.summary["resumed_at_samples"] >= EVERY * BATCH
    assert manifest.files[WEIGHTS].sha256 == undisturbed
