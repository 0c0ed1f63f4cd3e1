"""`orch plan`: what a person is told of a recipe before anything runs."""

from __future__ import annotations

from click.testing import CliRunner

from orchestrator.cli.main import orch


def test_arms_of_a_matrix_are_shown_by_their_whole_names(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    recipe = tmp_path / "recipe.yaml"
    arms = "{kind: pretrain, matrix: {seed: [0, 1]}, data: pairs, model: tiny, steps: 1}"
    recipe.write_text(f"name: arms\nstages:\n  pairs: {{kind: dataset, source: emoji}}\n  arms: {arms}\n")
    shown = CliRunner().invoke(orch, ["plan", str(recipe), "--store", str(tmp_path / "store")])
    assert shown.exit_code == 0, shown.output
    assert [name for name in ("arms[seed=0]", "arms[seed=1]") if name not in shown.output] == []
