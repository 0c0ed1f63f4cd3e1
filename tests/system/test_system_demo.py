"""The demo at a quarter of its steps: what it makes, what submitting again does, what the commands say of it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from system_orch import DEMO, QUARTER, ROOT, overrides

from orchestrator.store.runs import list_runs

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300, func_only=True)]

STAGES = {
    "pairs": "dataset",
    "clean": "curate",
    "teacher": "pretrain",
    "mid": "distill",
    "small": "distill",
    "scratch": "distill",
    "scores": "evaluate",
}


def manifests(demo):
    return {manifest.stage: manifest for manifest in demo.opened().manifests()}


def test_every_stage_is_done_and_its_artifact_is_there(demo):
    state = list_runs(demo.opened())[-1].state()["stages"]
    assert list(state) == list(STAGES)
    assert {name: (stage["kind"], stage["state"]) for name, stage in state.items()} == {
        name: (kind, "done") for name, kind in STAGES.items()
    }
    for name, manifest in manifests(demo).items():
        handle = demo.opened().handle(manifest.kind, manifest.fingerprint)
        assert manifest.kind == STAGES[name]
        assert manifest.files
        for file in manifest.files:
            handle.read(file)  # verifies size and digest


def test_checkpoints_of_finished_stages_are_gone(demo):
    assert list(Path(demo.store, "work").glob("*/*/ckpt-*/*")) == []


def test_trainings_saw_as_many_samples_as_their_steps_ask_for(demo):
    seen = {name: manifests(demo)[name].summary["samples"] for name in QUARTER}
    assert seen == {name: steps * 128 for name, steps in QUARTER.items()}


def test_all_metrics_are_finite_and_every_model_has_its_figures(demo):
    metrics = manifests(demo)["scores"].metrics
    assert metrics
    assert all(math.isfinite(value) for m in manifests(demo).values() for value in m.metrics.values())
    for model in QUARTER:
        figures = ("zeroshot.id.top1", "zeroshot.id.top5", "zeroshot.ood.top5", "parameters_without_token_table")
        assert {f"{model}/{figure}" for figure in figures} <= set(metrics)


def test_independent_stages_ran_at_the_same_time(demo):
    mid, scratch = manifests(demo)["mid"], manifests(demo)["scratch"]
    assert max(mid.started, scratch.started) < min(mid.finished, scratch.finished)


def test_the_end_shows_a_table_of_four_models_a_picture_and_where_to_look(demo):
    _, _, table = demo.said.out.partition("Models\n")
    for model in QUARTER:
        assert sum(line.split()[:1] == [model] for line in table.splitlines()) >= 3  # sizes, figures, ratios
    pictures = [line.partition(": ")[2] for line in demo.said.out.splitlines() if line.startswith("picture: ")]
    assert len(pictures) == 1
    assert Path(pictures[0]).read_bytes().startswith(b"\x89PNG\r\n")
    assert f"MLflow: sqlite:///{demo.store}/mlflow.db" in demo.said.out
    assert "Ray dashboard: http://127.0.0.1:" in demo.said.out


def test_progress_is_told_in_plain_lines_where_there_is_no_terminal(demo):
    told = demo.said.out + demo.said.err
    assert "\x1b[" not in told
    for stage in STAGES:
        assert f"{stage}: running" in told
        assert f"{stage}: done" in told
    assert any("teacher:" in line and "samples/s" in line for line in told.splitlines())


def test_submitting_again_runs_nothing_and_returns_at_once(orch, demo):
    again = orch("submit", *demo.recipe)
    assert "0 stages made, 7 were there already" in again.out + again.err
    fastest = min(again.wall_s, orch("submit", *demo.recipe).wall_s)
    print(f"submitting again took {fastest:.2f} s")
    assert fastest < 4  # 2 s on a quiet machine


def test_submitting_again_imports_neither_ray_nor_torch_nor_mlflow(orch, demo):
    code = f"""
import sys
from orchestrator import submit
assert submit({str(DEMO)!r}, store={demo.store!r}, overrides={list(demo.overrides[1::2])!r}).ok
print([name for name in ("ray", "torch", "mlflow") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=orch.environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_changing_one_learning_rate_runs_that_stage_and_what_follows_and_says_why(orch, demo):
    planned = json.loads(orch("plan", *demo.recipe, *overrides(small__learning_rate="5e-4"), "--json").out)
    stages = {stage["stage"]: stage for stage in planned["stages"]}
    assert {name for name, stage in stages.items() if stage["state"] != "cached"} == {"small", "scores"}
    (reason,) = stages["small"]["reasons"]
    assert reason.startswith("learning_rate 0.001 ")
    assert reason.endswith(" → 0.0005")
    assert any("small" in reason for reason in stages["scores"]["reasons"])
    assert planned["estimate_s"] > 0


COMMANDS = {
    "status": (["status"], ["done", "7/7"]),
    "status of a run": (["status", "last"], [*STAGES, "pretrain", "done"]),
    "logs": (["logs", "last", "teacher"], [""]),
    "show a run": (["show", "last"], [*STAGES, "tinyclip-progressive"]),
    "show a stage": (
        ["show", "small"],
        ["distill 'small'", "from teacher = teacher", "settings", "weights.safetensors"],
    ),
    "show lineage": (
        ["show", "small", "--lineage"],
        ["init.from = mid", "teacher = teacher", "data = clean"],
    ),
    "show methods": (["show", "methods"], ["tinyclip", "zeroshot", "dedup"]),
    "compare stages": (["compare", "small", "scratch"], ["init", "loss"]),
    "compare a run with itself": (["compare", "last", "last"], [f"{stage}: the same" for stage in STAGES]),
    "plan": (["plan", *["{recipe}"]], ["cached", "everything is there"]),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_says_what_a_person_wants_to_know(command, orch, demo):
    words, expected = COMMANDS[command]
    arguments = demo.recipe if words[0] == "plan" else (*words[1:], "--store", demo.store)
    said = orch(words[0], *arguments).out
    for text in expected:
        assert text in said


def test_show_gives_a_manifest_as_json(orch, demo):
    shown = json.loads(orch("show", "small", "--json", "--store", demo.store).out)
    assert shown["inputs"]["init.from"]["name"] == "mid"
    assert shown["provenance"]["packages"]


def test_an_unknown_stage_or_run_is_refused_with_those_there_are(orch, demo):
    assert "its stages are: pairs, clean" in orch("logs", "last", "tny", "--store", demo.store, exit_code=2).err
    assert "the newest are: 20" in orch("status", "nope", "--store", demo.store, exit_code=2).err


def test_doctor_and_data_list_need_no_store_and_no_cluster(orch):
    assert "python: 3." in orch("doctor").out
    listed = orch("data", "list").out
    assert "emoji" in listed.partition("to build")[0]
    assert "fashion-mnist" in listed.partition("to build")[2]


def test_cluster_status_says_where_the_dashboard_is(orch, demo):
    assert orch.cluster().dashboard_url in orch("cluster", "status").out


def test_smoke_makes_every_stage_in_two_steps_under_a_name_of_its_own(orch, demo):
    planned = json.loads(orch("plan", DEMO, "--smoke", "--store", demo.store, "--json").out)
    assert planned["name"] == "tinyclip-progressive-smoke"
    assert [stage["stage"] for stage in planned["stages"] if stage["state"] == "cached"] == ["pairs", "clean"]


def test_no_file_of_the_repository_was_written_to(demo):
    assert (
        not (ROOT / "orch-store").exists()
        or (ROOT / "orch-store").stat().st_mtime
        < demo.opened().find("dataset", manifests(demo)["pairs"].fingerprint).started
    )
