"""A submission from a recipe's file to its artifacts, without Ray: what is cached, until, rerun, smoke, indexing."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from toy_kinds import count

from orchestrator import load_model, submit
from orchestrator.engine.local import LocalExecutor
from orchestrator.engine.planning import request
from orchestrator.engine.run import run
from orchestrator.engine.view import PlainView
from orchestrator.errors import UserError
from orchestrator.recipe.schema import Table
from orchestrator.store.artifacts import Store
from orchestrator.store.runs import list_runs

pytestmark = pytest.mark.timeout(120)

KINDS = Table("stage kind", {"toy": "toy_kinds:Toy"})
DEMO = Path(__file__).parents[2] / "recipes" / "tinyclip_progressive.yaml"


@pytest.fixture
def recipe(tmp_path) -> Path:
    (tmp_path / "trace").mkdir()
    stages = {"first": [], "second": ["first"], "third": ["second"], "aside": []}
    lines = ["name: toys", "stages:"]
    for name, needs in stages.items():
        lines.append(f"  {name}: {{kind: toy, label: {name}, needs: {needs}, trace: {tmp_path / 'trace'}}}")
    path = tmp_path / "toys.yaml"
    path.write_text("\n".join(lines))
    return path


def states(recipe: Path, **asked) -> tuple[dict[str, str], str]:
    """States of the stages after a submission of toys, and what was shown."""
    output = io.StringIO()
    wanted = request(recipe, kinds=KINDS, **asked)
    store = Store.open(str(recipe.parent / "store"))
    result = run(wanted, store, PlainView(Console(file=output, width=200)), executor=LocalExecutor())
    return {name: status.state for name, status in result.stages.items()}, output.getvalue()


def test_until_makes_only_what_the_stage_needs(recipe):
    assert states(recipe, until=["second"])[0] == {"first": "done", "second": "done"}
    assert states(recipe)[0] == {"first": "cached", "second": "cached", "third": "done", "aside": "done"}


def test_rerun_computes_the_stage_and_what_follows_anew(recipe):
    states(recipe)
    again, _ = states(recipe, rerun=["second"])
    assert again == {"first": "cached", "second": "done", "third": "done", "aside": "cached"}
    assert count(recipe.parent / "trace", "second") == 2


@pytest.mark.parametrize("asked", [{"until": ["secnd"]}, {"rerun": ["secnd"]}])
def test_a_stage_that_is_not_there_is_refused_with_the_nearest_spelling(recipe, asked):
    with pytest.raises(UserError, match="did you mean second"):
        request(recipe, kinds=KINDS, **asked)


def test_the_end_says_what_was_made_and_what_was_there(recipe):
    assert "4 stages made, 0 were there already" in states(recipe)[1]
    assert "0 stages made, 4 were there already" in states(recipe)[1]


def test_a_failure_says_which_stage_why_and_where_its_log_is(recipe):
    shown = states(recipe, overrides=["stages.second.behaviour=fails"])[1]
    run_id = list_runs(Store.open(str(recipe.parent / "store")))[0].id
    assert "stage 'second' failed: the toy is broken; buy another" in shown
    assert f"orch logs {run_id} second" in shown


def test_a_run_is_recorded_with_its_recipe_and_plan(recipe):
    states(recipe, overrides=["stages.aside.label=other"])
    recorded = list_runs(Store.open(str(recipe.parent / "store")))[0]
    assert "label: other" in recorded.recipe()
    assert recorded.plan()["stages"]["third"]["needs"] == ["second"]
    assert {s["state"] for s in recorded.state()["stages"].values()} == {"done"}


def test_submitting_what_is_there_imports_neither_ray_nor_torch(recipe):
    states(recipe)
    code = f"""
import sys
from rich.console import Console
from orchestrator.engine.planning import request
from orchestrator.engine.run import run
from orchestrator.engine.view import PlainView
from orchestrator.recipe.schema import Table
from orchestrator.store.artifacts import Store
wanted = request({str(recipe)!r}, kinds=Table("stage kind", {{"toy": "toy_kinds:Toy"}}))
result = run(wanted, Store.open({str(recipe.parent / "store")!r}), PlainView(Console(stderr=True)))
assert result.ok
print([name for name in ("ray", "torch", "mlflow", "pyarrow") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_unknown_data_are_indexed_first_and_the_stage_then_has_its_identity(tmp_path):
    store = str(tmp_path / "store")
    result = submit(DEMO, store=store, until="pairs", tracking=False, quiet=True, executor=LocalExecutor())
    assert {name: s.state for name, s in result.stages.items()} == {"pairs": "done"}
    again = submit(DEMO, store=store, until="pairs", tracking=False, quiet=True)
    assert {name: s.state for name, s in again.stages.items()} == {"pairs": "cached"}
    with pytest.raises(UserError, match="is not a model but what stage 'pairs' of kind dataset made"):
        load_model("pairs", store)


def test_every_configuration_of_the_demo_survives_the_way_to_a_worker():
    for spec in request(DEMO).recipe.stages.values():
        sent = spec.config.model_dump_json(by_alias=True)
        assert type(spec.config).model_validate_json(sent) == spec.config


def test_smoke_has_a_name_of_its_own_and_small_stages():
    smoke, whole = request(DEMO, smoke=True).recipe, request(DEMO).recipe
    assert smoke.name == f"{whole.name}-smoke"
    assert smoke.stages["teacher"].config.steps < whole.stages["teacher"].config.steps
