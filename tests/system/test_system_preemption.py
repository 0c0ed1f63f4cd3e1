"""A training whose machine is taken goes on in the same submission; its figures are on Ray's metrics endpoint."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import tarfile
import urllib.request
from pathlib import Path

import pytest
from PIL import Image
from system_orch import Orch, wait

from orchestrator.store.artifacts import Manifest, Store
from orchestrator.store.checkpoints import MARKER
from orchestrator.store.events import EventReader
from orchestrator.store.runs import find_run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240, func_only=True)]

STEPS, BATCH, EVERY = 400, 8, 50
RECIPE = """
name: taken
stages:
  pairs: {kind: dataset, source: SHARDS}
  model: {kind: pretrain, data: pairs, model: tiny, steps: STEPS, batch: BATCH, warmup_steps: 2,
          report_every: EVERY, checkpoint_every: EVERY}
"""
WEIGHTS = "weights.safetensors"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A short training on squares of eight colours."""
    folder = tmp_path_factory.mktemp("taken")
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number, colour in enumerate(["red", "green", "blue", "black", "white", "yellow", "pink", "grey"] * 6):
            picture, image = Image.new("RGB", (32, 32), "white"), io.BytesIO()
            picture.paste(colour, (0, 0, 4 + number // 2, 9))
            picture.save(image, "PNG")
            for suffix, content in (("png", image.getvalue()), ("txt", f"a {colour} bar {number}".encode())):
                info = tarfile.TarInfo(f"{number:05d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    text = RECIPE
    for word, value in {"SHARDS": folder, "STEPS": STEPS, "BATCH": BATCH, "EVERY": EVERY}.items():
        text = text.replace(word, str(value))
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


def begun(orch: Orch, recipe: Path, store: str) -> subprocess.Popen:
    """A submission whose training has kept a first checkpoint."""
    process = orch.start("submit", recipe, "--store", store, "--no-mlflow")

    def kept() -> bool:
        assert process.poll() is None, process.communicate()
        return any(Path(store, "work").glob(f"*/*/ckpt-*/{MARKER}"))

    wait(kept, 120, "a first checkpoint")
    return process


def trained(store: str) -> tuple[Manifest, dict]:
    """The training's manifest, and its state in the newest run."""
    opened = Store.open(store)
    state = find_run(opened).state()["stages"]["model"]
    manifest = opened.find(state["kind"], state["fingerprint"])
    assert manifest is not None
    return manifest, state


@pytest.fixture(scope="module")
def undisturbed(orch, recipe, tmp_path_factory) -> str:
    """SHA-256 of the weights of a training that nobody disturbs."""
    store = str(tmp_path_factory.mktemp("undisturbed") / "store")
    orch("submit", recipe, "--store", store, "--no-mlflow", timeout_s=150)
    return trained(store)[0].files[WEIGHTS].sha256


def series(orch: Orch, store: str) -> dict[str, float]:
    """What the node's Prometheus endpoint has of the newest run: by name, and tag beside run and stage."""
    (node,) = orch.dashboard("/nodes?view=summary")["data"]["summary"]
    with urllib.request.urlopen(f"http://127.0.0.1:{node['raylet']['metricsExportPort']}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    found = (re.match(r"ray_(orch_\w+){(.*)} (\S+)$", line) for line in lines)
    mine = [m for m in found if m and f'run="{find_run(Store.open(store)).id}"' in m[2]]
    return {" ".join([m[1], *re.findall(r'\b((?:name|term|kind)="\w+")', m[2])]): float(m[3]) for m in mine}


def test_a_worker_that_gets_sigterm_checkpoints_at_once_and_the_run_goes_on_to_the_same_weights(
    orch, recipe, undisturbed, tmp_path
):
    store = str(tmp_path / "store")
    process = begun(orch, recipe, store)
    (worker,) = orch.workers("model")
    worker.terminate()
    said = orch.end(process, timeout_s=150)
    manifest, state = trained(store)
    assert (state["attempts"], state["preemptions"], state["crashes"]) == (2, 1, 0)
    samples = manifest.summary["resumed_at_samples"]
    assert f"model: waiting  preempted at {samples:,} samples, goes on from there" in said.out + said.err
    assert f"preempted at {samples:,} samples" in orch("logs", "last", "model", "--store", store).out
    reports = [e for e in EventReader(Store.open(store).storage, manifest.fingerprint).poll() if e["type"] == "report"]
    assert [event["samples"] for event in reports] == list(range(EVERY * BATCH, STEPS * BATCH + 1, EVERY * BATCH))
    assert manifest.files[WEIGHTS].sha256 == undisturbed
    assert not worker.is_running()
    shown = wait(lambda: series(orch, store), 20, "the run's figures")
    assert shown['orch_stages_preempted_total kind="pretrain"'] == 1


def test_a_worker_that_is_killed_costs_at_most_the_steps_since_its_last_checkpoint(
    orch, recipe, undisturbed, tmp_path
):
    store = str(tmp_path / "store")
    process = begun(orch, recipe, store)
    (worker,) = orch.workers("model")
    worker.kill()
    orch.end(process, timeout_s=150)
    manifest, state = trained(store)
    assert (state["attempts"], state["preemptions"], state["crashes"]) == (2, 0, 1)
    events = EventReader(Store.open(store).storage, manifest.fingerprint).poll()
    (again,) = [index for index, event in enumerate(events) if event["type"] == "resumed"]
    reached = max((e["done"] for e in events[:again] if e["type"] == "progress"), default=0)
    assert reached - manifest.summary["resumed_at_samples"] <= EVERY * BATCH
    assert manifest.files[WEIGHTS].sha256 == undisturbed


def test_a_submission_that_gets_sigterm_stops_as_by_ctrl_c_and_says_how_to_go_on(orch, recipe, undisturbed, tmp_path):
    store = str(tmp_path / "store")
    process = begun(orch, recipe, store)
    process.send_signal(signal.SIGTERM)
    said = orch.end(process, exit_code=130, timeout_s=60)
    assert "stopping: running stages checkpoint first" in said.out + said.err
    assert f"nothing is lost, go on with: orch submit {recipe}" in said.out + said.err
    assert "Traceback" not in said.out + said.err
    orch("submit", recipe, "--store", store, "--no-mlflow", timeout_s=150)
    manifest, _ = trained(store)
    assert manifest.generation == 2
    assert manifest.files[WEIGHTS].sha256 == undisturbed


def test_figures_of_a_training_are_on_rays_metrics_endpoint(orch, recipe, tmp_path):
    store = str(tmp_path / "store")
    orch("submit", recipe, "--store", store, "--no-mlflow", timeout_s=150)
    shown = wait(lambda: series(orch, store), 20, "the run's figures")
    assert shown["orch_train_samples"] == STEPS * BATCH
    assert {f"orch_train_{name}" for name in ("loss", "samples_per_s", "data_wait_share", "grad_norm")} <= set(shown)
    assert 'orch_train_loss_term term="contrastive"' in shown
    assert shown['orch_stages_done_total kind="pretrain"'] == 1
