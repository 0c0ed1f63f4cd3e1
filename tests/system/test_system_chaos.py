"""The chaos benchmark, short: processes are killed under the demo recipe, and every run ends with the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from system_orch import FOREIGN, ROOT

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900, func_only=True)]


@pytest.mark.parametrize("victims", ["submitter,worker,raylet", "controller,rank,deliverer"])
def test_a_recipe_under_kills_ends_with_equal_weights_whole_curves_and_nothing_left_behind(victims, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    report = tmp_path / "chaos.json"
    options = ["--kills", "3", "--kills-a-run", "3", "--seed", "1", "--store", "local", "--scale", "0.1"]
    command = [sys.executable, "-m", "benchmarks.chaos", *options, "--victims", victims, "--json", str(report)]
    done = subprocess.run(
        [*command, "--work", str(tmp_path / "work")], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    figures = json.loads(report.read_text())
    kills = [kill for run in figures["runs"] for kill in run["kills"]]
    assert sorted(kill["victim"] for kill in kills) == sorted(victims.split(","))
    assert all(kill["back_s"] is not None for kill in kills)
    assert all(not run["different"] and not run["curves"] for run in figures["runs"])
    assert figures["left_behind"] == []
