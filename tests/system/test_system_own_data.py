"""Somebody's own shards, as img2dataset writes them: `init` looks at them and writes a recipe that plans and runs."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from system_orch import NUM_SAMPLES, NUM_SHARDS, write_shards

from orchestrator.store.artifacts import Store

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240, func_only=True)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Somebody's photographs, and img2dataset's side files."""
    folder = tmp_path_factory.mktemp("cc3m")
    write_shards(folder)
    return folder


def test_init_writes_a_recipe_that_plans_and_runs(orch, shards, tmp_path):
    recipe, store = tmp_path / "recipe.yaml", str(tmp_path / "store")
    looked = orch("init", "--data", shards, "--out", recipe).out
    assert f"first of {NUM_SHARDS} shards: {NUM_SAMPLES} pairs ({NUM_SAMPLES} jpg), shorter side 60 pixels" in looked
    assert f"next: orch plan {recipe}" in looked
    assert "$schema=schema.json" in recipe.read_text()
    assert json.loads((tmp_path / "schema.json").read_text())["title"] == "recipe"

    planned = json.loads(orch("plan", recipe, "--store", store, "--json").out)
    assert {stage["state"] for stage in planned["stages"]} == {"pending"}
    assert not Path(store).exists()

    orch("submit", recipe, "--smoke", "--store", store, timeout_s=150)
    made = {manifest.stage: manifest for manifest in Store.open(store).manifests()}
    assert list(made) == ["pairs", "clean", "clip", "scores"]
    metrics = made["scores"].metrics
    assert made["clip"].summary["training_set_size"] + metrics["clip/retrieval.id.text_to_image.images"] <= 96
    assert 0 <= metrics["clip/retrieval.id.text_to_image.r1"] <= 1

    planned = json.loads(orch("plan", recipe, "--store", store, "--json").out)
    assert {stage["stage"]: stage["state"] for stage in planned["stages"]} == {
        "pairs": "cached",
        "clean": "cached",
        "clip": "to run",
        "scores": "to run",
    }


def test_init_does_not_overwrite_a_recipe(orch, shards, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("mine")
    assert "is there already" in orch("init", "--data", shards, "--out", recipe, exit_code=2).err
    assert recipe.read_text() == "mine"


@pytest.mark.parametrize(("content", "exit_code"), [("nothing", 2), ("no pairs", 1)])
def test_init_refuses_data_that_it_cannot_use(content, exit_code, orch, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    if content == "no pairs":
        with tarfile.open(folder / "00000.tar", "w") as tar:
            tar.addfile(tarfile.TarInfo("readme.md"))
    said = orch("init", "--data", folder, "--out", tmp_path / "recipe.yaml", exit_code=exit_code)
    assert said.err.startswith("error: ")
    assert not (tmp_path / "recipe.yaml").exists()
