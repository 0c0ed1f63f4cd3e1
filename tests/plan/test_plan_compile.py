"""Recipe to Plan: edges, order, what is pending, `until` and `rerun`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from toy_recipe_kinds import KINDS

from orchestrator.errors import UserError
from orchestrator.plan.compile import External, Indexed, compile
from orchestrator.recipe.errors import RecipeError
from orchestrator.recipe.load import load

ALL = frozenset({"encode_image", "encode_text", "score"})
RECIPE = """\
stages:
  scores: {kind: evaluate, models: [teacher, arms, "open_clip:ViT-B-32/openai"], data: pairs}
  teacher: {kind: train, data: clean}
  arms: {kind: train, data: clean, teacher: teacher, method: mimic, matrix: {seed: [0, 1]}}
  clean: {kind: curate, data: pairs, steps: [{clip_score: {model: hf-hub:org/judge}}]}
  pairs: {kind: data, source: emoji}
  apart: {kind: data, source: other}
"""


@pytest.fixture
def plan(tmp_path):
    def plan(
        *overrides, identify=lambda source: f"digest-{source}", external=lambda r: External(f"id-{r}", ALL), **kwargs
    ):
        file = tmp_path / "r.yaml"
        file.write_text(RECIPE)

        def indexed(source):
            digest = identify(source)
            return None if digest is None else Indexed(digest, f"sources/{digest}")

        return compile(load(file, overrides, kinds=KINDS), indexed, external, **kwargs)

    return plan


def prints(plan):
    return {name: node.fingerprint for name, node in plan.nodes.items()}


def test_every_stage_comes_after_those_it_needs(plan):
    order = list(plan().nodes)
    assert order == ["pairs", "clean", "teacher", "arms[seed=0]", "arms[seed=1]", "scores", "apart"]


def test_edges_name_what_they_come_from(plan):
    scores = plan().nodes["scores"]
    assert [(i.key, i.artifact, i.stage, i.output, i.external, i.kind) for i in scores.inputs] == [
        ("models.0", "Model", "teacher", "model", None, "train"),
        ("models.1", "Model", "arms[seed=0]", "model", None, "train"),
        ("models.2", "Model", "arms[seed=1]", "model", None, "train"),
        ("models.3", "Model", None, "", "open_clip:ViT-B-32/openai", "external"),
        ("data", "Dataset", "pairs", "data", None, "data"),
    ]
    assert scores.upstream == ("teacher", "arms[seed=0]", "arms[seed=1]", "pairs")
    assert [i.key for i in plan().nodes["clean"].inputs] == ["data", "steps.0.model"]


def test_a_named_output_is_another_edge_than_the_default_one(plan):
    found = plan("stages.arms.teacher=teacher.model")
    assert prints(found)["arms[seed=0]"] == prints(plan())["arms[seed=0]"]


def test_a_change_reaches_what_follows_and_nothing_else(plan):
    before, after = prints(plan()), prints(plan("stages.teacher.learning_rate=5e-4"))
    changed = [name for name in before if before[name] != after[name]]
    assert changed == ["teacher", "arms[seed=0]", "arms[seed=1]", "scores"]


def test_the_place_of_data_is_no_identity_but_their_content_is(plan):
    moved = plan("stages.pairs.source=s3://bucket/emoji", identify=lambda source: "digest-emoji")
    assert prints(moved)["clean"] == prints(plan())["clean"]
    assert prints(plan(identify=lambda source: "other"))["clean"] != prints(plan())["clean"]
    assert plan().nodes["pairs"].external == {"emoji": "sources/digest-emoji"}


def test_external_weights_count_by_their_content(plan):
    other = plan(external=lambda ref: External("new" if ref.startswith("hf") else f"id-{ref}", ALL))
    assert prints(other)["clean"] != prints(plan())["clean"]


def test_data_that_are_not_indexed_leave_all_that_follows_pending(plan):
    found = plan(identify=lambda source: None if source == "emoji" else "d")
    pending = {name: node.pending for name, node in found.nodes.items()}
    assert pending["pairs"] == "to index first: emoji"
    assert pending["clean"] == "waits for pairs"
    assert pending["scores"] == "waits for teacher, arms[seed=0], arms[seed=1], pairs"
    assert pending["apart"] is None
    assert found.nodes["clean"].payload is None
    assert found.nodes["clean"].fingerprint is None


def test_an_external_model_that_is_not_known_yet_leaves_its_stage_pending(plan):
    found = plan(external=lambda ref: External(None, ALL, f"to download first: {ref}"))
    assert found.nodes["clean"].pending == "to download first: hf-hub:org/judge"


def test_external_models_that_cannot_be_had_are_all_said_with_their_positions(plan):
    def missing(ref):
        raise UserError(f"no weights for {ref}", "pip install weights")

    with pytest.raises(RecipeError) as caught:
        plan(external=missing)
    assert [p.line for p in caught.value.problems] == [2, 5]
    assert "pip install weights" in str(caught.value)


@pytest.mark.parametrize(
    ("can", "lines"),
    [({"encode_image", "encode_text"}, []), ({"encode_image"}, [5]), ({"encode_text"}, [2, 5]), (set(), [2, 5])],
)
def test_an_external_model_is_refused_at_every_place_that_needs_what_it_cannot_do(plan, can, lines):
    def external(reference):
        return External(reference, frozenset(can))

    if not lines:
        assert plan(external=external).nodes["clean"].fingerprint is not None
        return
    with pytest.raises(RecipeError, match="which is needed here; it can: ") as caught:
        plan(external=external)
    assert [problem.line for problem in caught.value.problems] == lines
    assert list(plan(until=["apart"], external=external).nodes) == ["apart"]


def test_until_keeps_a_stage_and_what_it_needs(plan):
    assert list(plan(until=["teacher"]).nodes) == ["pairs", "clean", "teacher"]
    assert list(plan(until=["arms"]).nodes) == ["pairs", "clean", "teacher", "arms[seed=0]", "arms[seed=1]"]
    assert prints(plan(until=["teacher"]))["teacher"] == prints(plan())["teacher"]


def test_a_rerun_is_another_result_and_so_is_what_follows(plan):
    before, after = prints(plan()), prints(plan(rerun={"teacher": "n1"}))
    assert [n for n in before if before[n] != after[n]] == ["teacher", "arms[seed=0]", "arms[seed=1]", "scores"]
    assert prints(plan(rerun={"teacher": "n1"})) == after


@pytest.mark.parametrize("kwargs", [{"until": ["teachr"]}, {"rerun": {"teachr": "n"}}])
def test_a_misspelt_stage_on_the_command_line_gets_the_nearest(plan, kwargs):
    with pytest.raises(UserError, match=r"no stage 'teachr'(.|\n)*did you mean teacher\?"):
        plan(**kwargs)


def test_the_plan_carries_the_resolved_recipe(plan):
    assert plan("stages.teacher.steps=7").recipe["stages"]["teacher"]["steps"] == 7
    assert json.dumps(plan().recipe)


TIMED = """
import sys, time
started = time.perf_counter()
sys.path.insert(0, sys.argv[2])
from toy_recipe_kinds import KINDS
from orchestrator.recipe.load import load
from orchestrator.plan.compile import External, Indexed, compile
plan = compile(load(sys.argv[1], kinds=KINDS), lambda s: Indexed("d", "p"), lambda r: External("i"))
heavy = {"torch", "ray", "mlflow", "pyarrow", "numpy", "pandas", "boto3"} & set(sys.modules)
print(len(plan.nodes), sorted(heavy), time.process_time())
"""


def test_twenty_stages_are_planned_well_within_a_second_without_heavy_imports(tmp_path):
    chain = [
        f"  t{n}: {{kind: train, data: pairs, teacher: t{n - 1}, method: mimic, seed: {n}}}" for n in range(1, 19)
    ]
    stages = "\n".join(["  t0: {kind: train, data: pairs}", *chain])
    file = tmp_path / "r.yaml"
    file.write_text(f"stages:\n  pairs: {{kind: data, source: x}}\n{stages}\n")
    toys = str(Path(__file__).parent.parent / "recipe")
    command = [sys.executable, "-c", TIMED, str(file), toys]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    num_stages, heavy, seconds = result.stdout.split()
    assert (num_stages, heavy) == ("20", "[]")
    assert float(seconds) < 1
