"""`extends`, `vars`, overrides and `matrix`."""

from __future__ import annotations

import pytest
from toy_recipe_kinds import KINDS

from orchestrator.recipe import yaml
from orchestrator.recipe.errors import RecipeError
from orchestrator.recipe.load import load

BASE = """\
name: base
description: the base
vars: {lr: 1e-3, who: teacher}
stages:
  pairs: {kind: data, source: emoji}
  teacher:
    {kind: train, data: pairs, learning_rate: "${vars.lr}", method: {mimic: {temperature: 20}}, betas: [0.5, 0.6]}
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="recipe.yaml"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def config(recipe, stage="teacher"):
    return recipe.stages[stage].config


def test_extends_merges_mappings_and_replaces_the_rest(write):
    write(BASE, "papers/base.yaml")
    child = write(
        "extends: ../papers/base.yaml\n"
        "stages: {teacher: {steps: 7, betas: [0.9, 0.99]}, other: {kind: data, source: x}}\n",
        "small/child.yaml",
    )
    recipe = load(child, kinds=KINDS)
    assert list(recipe.stages) == ["pairs", "teacher", "other"]
    assert (config(recipe).steps, config(recipe).betas, config(recipe).learning_rate) == (7, [0.9, 0.99], 1e-3)
    assert config(recipe).method.temperature == 20
    assert (recipe.name, recipe.description) == ("child", "")


@pytest.mark.parametrize(
    ("method", "name", "temperature"),
    [("plain", "plain", None), ("{plain: {}}", "plain", None), ("{mimic: {weight: 0.1}}", "mimic", 20)],
)
def test_another_choice_replaces_the_base_choice_and_the_same_one_merges(write, method, name, temperature):
    write(BASE, "base.yaml")
    recipe = load(write(f"extends: base.yaml\nstages: {{teacher: {{method: {method}}}}}"), kinds=KINDS)
    assert type(config(recipe).method).__name__.lower() == name
    assert getattr(config(recipe).method, "temperature", None) == temperature


def test_errors_of_an_extended_file_name_that_file(write):
    write(BASE.replace("temperature", "temprature"), "base.yaml")
    with pytest.raises(RecipeError, match=r"base\.yaml:7:78 stages\.teacher\.method\.mimic\.temprature"):
        load(write("extends: base.yaml"), kinds=KINDS)


def test_recipes_that_extend_each_other_are_refused(write):
    write("extends: b.yaml", "a.yaml")
    write("extends: a.yaml", "b.yaml")
    with pytest.raises(RecipeError, match=r"in a circle: a\.yaml → b\.yaml → a\.yaml"):
        load(write("extends: b.yaml", "a.yaml"), kinds=KINDS)


def test_a_misspelt_base_gets_the_nearest_file(write):
    write(BASE, "papers/base.yaml")
    with pytest.raises(RecipeError, match=r"did you mean \.\./papers/base\.yaml"):
        load(write("extends: ../papers/bse.yaml", "small/r.yaml"), kinds=KINDS)


def test_a_variable_alone_keeps_its_type_and_inside_text_becomes_text(write):
    text = BASE.replace("source: emoji", 'source: "s3://${vars.who}-${vars.n}/x"').replace(
        "vars: {", "vars: {n: 3, b: '${vars.lr}', "
    )
    recipe = load(write(text), ["stages.teacher.space={a: '${vars.b}'}"], kinds=KINDS)
    assert config(recipe, "pairs").source == "s3://teacher-3/x"
    assert config(recipe).space == {"a": 1e-3}


@pytest.mark.parametrize(
    ("written", "fragment"),
    [
        ("${vars.lrr}", r"no variable 'lrr'(.|\n)*did you mean \$\{vars\.lr\}"),
        ("${HOME}", "only \\$\\{vars.NAME\\} is"),
        ("${vars.a}", "circle: a → b → a"),
    ],
)
def test_a_variable_that_cannot_be_filled_in_is_refused(write, written, fragment):
    text = BASE.replace("vars: {", "vars: {a: '${vars.b}', b: '${vars.a}', " if "vars.a" in written else "vars: {")
    with pytest.raises(RecipeError, match=fragment):
        load(write(text.replace("${vars.lr}", written)), kinds=KINDS)


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("stages.teacher.steps=50", lambda c: c.steps, 50),
        ("vars.lr=5e-4", lambda c: c.learning_rate, 5e-4),
        ("stages.teacher.betas=[0.1, 0.2]", lambda c: c.betas, [0.1, 0.2]),
        ("stages.teacher.betas.1=0.7", lambda c: c.betas, [0.5, 0.7]),
        ("stages.teacher.method.mimic.weight=0.25", lambda c: (c.method.weight, c.method.temperature), (0.25, 20)),
        ("stages.teacher.method=plain", lambda c: type(c.method).__name__, "Plain"),
        ("stages.teacher.resources.cpus=2", lambda c: c.resources.cpus, 2),
        ("stages.teacher.init.from=./weights", lambda c: c.init.from_, "./weights"),
        ("stages.teacher.teacher=", lambda c: c.teacher, None),
    ],
)
def test_an_override_sets_what_its_path_names(write, override, read, value):
    assert read(config(load(write(BASE), [override], kinds=KINDS))) == value


def test_the_options_of_a_choice_written_as_a_name_can_be_overridden(write):
    text = BASE.replace("{mimic: {temperature: 20}}", "mimic")
    recipe = load(write(text), ["stages.teacher.method.mimic.weight=0.25"], kinds=KINDS)
    assert config(recipe).method.weight == 0.25


def test_the_resolved_values_load_to_the_same_recipe(write):
    recipe = load(write(BASE), ["vars.lr=5e-4"], kinds=KINDS)
    again = load(write(yaml.dump(recipe.values), "again.yaml"), kinds=KINDS)
    assert {n: s.config for n, s in again.stages.items()} == {n: s.config for n, s in recipe.stages.items()}


MATRIX = """\
stages:
  pairs: {kind: data, source: emoji}
  arms:
    kind: train
    data: pairs
    method: mimic
    matrix: {seed: [0, 1], method.mimic.temperature: [20, 50.5]}
  next: {kind: train, data: pairs, init: {from: "arms[seed=1,method.mimic.temperature=20]"}}
  scores: {kind: evaluate, data: pairs, models: [next, arms]}
"""


def test_a_matrix_multiplies_a_stage_in_the_order_of_its_lists(write):
    recipe = load(write(MATRIX), kinds=KINDS)
    names = [f"arms[seed={s},method.mimic.temperature={t}]" for s in (0, 1) for t in (20, 50.5)]
    assert recipe.groups == {"arms": tuple(names)}
    assert list(recipe.stages) == ["pairs", *names, "next", "scores"]
    assert [(config(recipe, n).seed, config(recipe, n).method.temperature) for n in names] == [
        (0, 20.0),
        (0, 50.5),
        (1, 20.0),
        (1, 50.5),
    ]
    assert config(recipe, "scores").models == ["next", *names]


@pytest.mark.parametrize(
    ("written", "count"),
    [("arms", 4), ("arms[seed=1]", 2), ("'arms[seed=1, method.mimic.temperature=5.05e1]'", 1), ("arms.model", 4)],
)
def test_a_pick_in_a_list_means_all_arms_that_fit(write, written, count):
    written = written if written.startswith("'") else f'"{written}"'
    recipe = load(write(MATRIX.replace("[next, arms]", f"[{written}]")), kinds=KINDS)
    assert len(config(recipe, "scores").models) == count


@pytest.mark.parametrize(
    ("picks", "fragment"),
    [
        ("[seed=1]", r"recipe.yaml:8:49 .*means 2 stages, and one is wanted"),
        ("", "means 4 stages"),
        ("[seed=7,method.mimic.temperature=20]", "fits no arm"),
        ("[sede=1]", r"picks nothing(.|\n)*did you mean seed"),
    ],
)
def test_a_pick_that_does_not_leave_one_arm_is_refused_where_one_is_wanted(write, picks, fragment):
    text = MATRIX.replace("arms[seed=1,method.mimic.temperature=20]", f"arms{picks}")
    with pytest.raises(RecipeError, match=fragment):
        load(write(text), kinds=KINDS)


@pytest.mark.parametrize(
    ("matrix", "fragment"),
    [
        ("{seed: 1}", r"recipe.yaml:7:20 stages.arms.matrix.seed: expected a list"),
        ("{seed: []}", "expected a list of at least one value"),
        ("[1]", "expected fields with lists"),
        ("{seed: [1, 1]}", "listed twice"),
        ("{sede: [1, 2]}", r"recipe.yaml:7:14 stages.arms.sede: unknown field 'sede'(.|\n)*did you mean seed"),
        ("{seed: [1, x]}", r"recipe.yaml:7:24 stages.arms.seed: expected an integer, got 'x'"),
        ("{data.x: [1, 2]}", r"recipe.yaml:7:14 .*single value"),
    ],
)
def test_a_wrong_matrix_is_refused_where_it_stands(write, matrix, fragment):
    text = MATRIX.replace("{seed: [0, 1], method.mimic.temperature: [20, 50.5]}", matrix)
    text = text.replace('"arms[seed=1,method.mimic.temperature=20]"', "./weights")
    with pytest.raises(RecipeError, match=fragment) as caught:
        load(write(text), kinds=KINDS)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("axis", "labels"),
    [
        ("method: [plain, {mimic: {weight: 0.1}}]", ["plain", "mimic"]),
        ("method: [{mimic: {weight: 0.1}}, {mimic: {weight: 0.2}}]", ["0", "1"]),
        ("betas: [[0.1, 0.2], [0.3, 0.4]]", ["0", "1"]),
        ("shuffle: [true, false]", ["true", "false"]),
        ("teacher: [null, ./a/b]", ["null", ".-a-b"]),
    ],
)
def test_arms_are_named_by_values_or_by_numbers_where_values_have_no_name(write, axis, labels):
    text = f"stages:\n  pairs: {{kind: data, source: x}}\n  arms: {{kind: train, data: pairs, matrix: {{{axis}}}}}\n"
    recipe = load(write(text), kinds=KINDS)
    assert [name.partition("=")[2].rstrip("]") for name in recipe.groups["arms"]] == labels
