"""`python -m orchestrator.training`: one stage trained without Ray, in one process and under torchrun, killed, stopped
and gone on with. Its Model is, bit for bit, the one that a run makes of the stage.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from stages_train_tiny import write_shard

from orchestrator import api
from orchestrator.engine.local import LocalExecutor
from orchestrator.models.artifact import load
from orchestrator.recipe.errors import RecipeError
from orchestrator.stages.train import standalone
from orchestrator.store.artifacts import Store
from orchestrator.store.events import curves
from orchestrator.training.__main__ import main

STEPS = 40
RECIPE = f"""\
stages:
  pairs: {{kind: dataset, source: SHARDS, split: {{holdout: 0.2}}}}
  small: {{kind: pretrain, data: pairs, model: tiny, steps: {STEPS}, batch: 8, warmup_steps: 2, report_every: 5,
          checkpoint_every: 2, augment: {{scale: [1.0, 1.0]}}}}
  smaller: {{kind: distill, data: pairs, teacher: small, model: tiny, steps: 2, batch: 8}}
"""
UNNEEDED = (
    "ray",
    "mlflow",
    "webdataset",
    "boto3",
    "optuna",
    "rich",
    "click",
    "timm",
    "transformers",
    "huggingface_hub",
)
WITHOUT = f"""\
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {UNNEEDED}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Block())
from orchestrator.training.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "shards").mkdir()
    write_shard(folder / "shards" / "00000.tar", 80)
    (folder / "recipe.yaml").write_text(RECIPE.replace("SHARDS", str(folder / "shards")))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def made(recipe):
    """The stage as the engine makes it, in this process; the store has it and its input."""
    result = api.submit(
        recipe, store=str(recipe.parent / "store"), until="small", executor=LocalExecutor(), tracking=False, quiet=True
    )
    assert result.ok
    return result.manifests["small"]


@pytest.fixture(scope="module")
def arguments(recipe, made) -> list[str]:
    return [str(recipe), "small", "--store", str(recipe.parent / "store")]


@pytest.fixture(scope="module")
def trained(arguments, tmp_path_factory) -> Path:
    """The stage trained by the command, in a process that has none of the packages it can do without."""
    out = tmp_path_factory.mktemp("trained") / "out"
    command = [sys.executable, "-c", WITHOUT, *arguments, "--out", str(out)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (out / "said").write_text(done.stderr)
    return out


def digest(out: Path) -> str:
    return json.loads((out / "result.json").read_text())["content_digest"]


def events(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]


def wait_for_checkpoint(process: subprocess.Popen, out: Path) -> None:
    """Until a complete one is there; the training must not be over by then."""
    deadline = time.monotonic() + 100
    while not any(out.glob("checkpoints/work/*/1/ckpt-*/complete.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_it_makes_the_very_model_of_a_run_without_ray_or_mlflow(trained, made):
    assert digest(trained) == made.content_digest
    assert sorted(path.name for path in (trained / "model").iterdir()) == ["model.json", "weights.safetensors"]
    assert load(trained / "model")[0].capabilities == {"encode_image", "encode_text", "score"}


def test_it_says_and_keeps_what_happened(trained):
    loss = curves(events(trained))["loss"]
    assert [samples for samples, _ in loss] == list(range(40, STEPS * 8 + 1, 40))
    said = (trained / "said").read_text().splitlines()
    assert said[0] == f"training small on cpu, 1 threads, into {trained}"
    assert said[1].startswith(f"small  40 of 320 samples  loss {loss[0][1]:.4f}  ")
    assert "samples/s  wait " in said[1]
    result = json.loads((trained / "result.json").read_text())
    assert (result["metrics"]["loss"], result["summary"]["samples"]) == (loss[-1][1], STEPS * 8)


def test_a_finished_folder_is_left_alone(trained, arguments, capfd):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    assert main([*arguments, "--out", str(trained)]) == 0
    assert "small is finished: its Model is in" in capfd.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_a_folder_of_another_training_is_refused_with_what_differs(trained, arguments, capfd):
    changed = ["-s", "stages.small.learning_rate=5e-4", "-s", "stages.small.checkpoint_every=7"]
    assert main([*arguments, *changed, "--out", str(trained)]) == 2
    assert "holds another training ('small'): learning_rate 0.001 (default) → 0.0005\n" in capfd.readouterr().err


@pytest.mark.parametrize(("number", "reason"), [(signal.SIGTERM, "preempted"), (signal.SIGINT, "cancelled")])
def test_a_signal_checkpoints_and_the_same_command_goes_on_to_the_same_bits(number, reason, recipe, made, tmp_path):
    store = Store.open(str(recipe.parent / "store"))
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if "  80 of 320 samples" in text:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    assert standalone.run(standalone.find(str(recipe), "small", store), tmp_path, say=say) == 130
    assert said[-1] == f"stopped ({reason}) at 88 samples; the same command goes on from there"
    assert signal.getsignal(number) is before
    assert standalone.run(standalone.find(str(recipe), "small", store), tmp_path, say=said.append) == 0
    assert "small  goes on from the checkpoint at 88 samples" in said
    assert digest(tmp_path) == made.content_digest
    assert not any(path.is_file() for path in (tmp_path / "checkpoints").rglob("*"))


def test_killed_it_goes_on_to_the_same_bits_and_the_same_curve(arguments, trained, made, tmp_path):
    command = [sys.executable, "-m", "orchestrator.training", *arguments, "--out", str(tmp_path)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE)
    wait_for_checkpoint(process, tmp_path)
    process.kill()
    process.communicate()
    assert not (tmp_path / "model").exists()
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    assert digest(tmp_path) == made.content_digest
    assert any(event["type"] == "resumed" for event in events(tmp_path))
    assert curves(events(tmp_path))["loss"] == curves(events(trained))["loss"]


def test_under_torchrun_a_signal_to_any_worker_stops_all_and_one_process_goes_on(arguments, trained, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "orchestrator.training", *arguments, "--out", str(tmp_path)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    wait_for_checkpoint(process, tmp_path)
    (last,) = (child for child in psutil.Process(process.pid).children() if child.environ().get("RANK") == "1")
    last.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=100)
    assert "training small on cpu, 1 threads in each of 2 workers" in said
    assert said.count("stopped (preempted) at ") == 1, said
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    (warning,) = (event["text"] for event in events(tmp_path) if event["type"] == "message")
    assert "resumed with workers 2 → 1" in warning
    here, there = (dict(curves(events(out))["loss"]) for out in (tmp_path, trained))
    assert here == pytest.approx(there, rel=1e-3)
    one, other = (load(out / "model")[0].state_dict() for out in (tmp_path, trained))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0.01, atol=1e-3, msg=name)


def test_its_model_is_a_teacher_by_its_path_unless_it_cannot_do_what_is_needed(recipe, trained, tmp_path):
    store = Store.open(str(recipe.parent / "store"))
    shutil.copytree(trained / "model", tmp_path / "model")
    text = recipe.read_text().replace("teacher: small", f"teacher: {tmp_path / 'model'}")
    (tmp_path / "recipe.yaml").write_text(text)
    found = standalone.find(str(tmp_path / "recipe.yaml"), "smaller", store)
    assert found.missing == ()
    description = json.loads((tmp_path / "model" / "model.json").read_text())
    for given, message in (
        (
            {"capabilities": ["encode_image"]},
            "cannot encode_text or score, which is needed here; it can: encode_image",
        ),
        ({}, "is not a model: its model.json does not say what it can do"),
    ):
        without = {name: value for name, value in description.items() if name != "capabilities"}
        (tmp_path / "model" / "model.json").write_text(json.dumps(without | given))
        with pytest.raises(RecipeError, match=message) as caught:
            standalone.find(str(tmp_path / "recipe.yaml"), "smaller", store)
        assert [problem.line for problem in caught.value.problems] == [5]


@pytest.mark.parametrize(
    ("stage", "more", "expected"),
    [
        ("smal", [], "error: there is no stage 'smal' in "),
        ("pairs", [], "is of kind dataset and trains nothing\n  stages that do: small, smaller\n"),
        ("small", ["-s", "stages.small.stepz=5"], "-s #1 stages.small.stepz: unknown field 'stepz'"),
        ("smaller", ["-s", "stages.smaller.matrix={seed: [0, 1]}"], "one of them: smaller[seed=0], smaller[seed=1]"),
        ("smaller", ["-s", "stages.small.steps=3"], "--until small --store "),
        ("small", ["--device", "cuda"], "there is no GPU that torch can use"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_way_out(arguments, stage, more, expected, tmp_path, capfd):
    if more == ["--device", "cuda"] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main([arguments[0], stage, *arguments[2:], *more, "--out", str(tmp_path / "out")]) == 2
    said = capfd.readouterr().err
    assert expected in said
    assert "Traceback" not in said


def test_inputs_are_made_on_request_without_ray(recipe, tmp_path, capfd):
    command = [str(recipe), "small", "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    command += ["-s", "stages.small.steps=1"]
    assert main(command) == 2
    said = capfd.readouterr().err
    assert "stage 'small' needs 'pairs' (its data), which " in said
    assert f"orch submit {recipe} -s stages.small.steps=1 --until pairs --store {tmp_path / 'store'}" in said
    assert main([*command, "--make-inputs"]) == 0
    kinds = [manifest.kind for manifest in Store.open(str(tmp_path / "store")).manifests()]
    assert kinds == ["dataset"]
    assert (tmp_path / "out" / "model" / "weights.safetensors").is_file()
