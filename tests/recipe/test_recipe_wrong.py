"""Wrong recipes: each gets its error at the right place, in plain words, and all at once."""

from __future__ import annotations

import time

import pytest
from pydantic import model_validator
from toy_recipe_kinds import KINDS

from orchestrator.recipe.errors import RecipeError
from orchestrator.recipe.load import load

RIGHT = """\
name: demo
stages:
  pairs:
    kind: data
    source: emoji
  clean:
    kind: curate
    data: pairs
    steps: [dedup, {clip_score: {model: "open_clip:ViT-B-32/openai"}}]
  teacher:
    kind: train
    data: clean
    steps: 100
    method: plain
  small:
    kind: train
    data: clean
    teacher: teacher
    method: {mimic: {temperature: 20}}
    init: {from: teacher}
  scores:
    kind: evaluate
    models: [teacher, small]
    data: pairs
"""


def problems_of(tmp_path, text, *overrides):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError) as caught:
        load(file, overrides, kinds=KINDS)
    assert caught.value.exit_code == 2
    return [
        (p.render().partition("\n")[0].replace(f"{tmp_path}/", ""), p.suggestion, p.allowed)
        for p in caught.value.problems
    ]


def swapped(old, new):
    assert RIGHT.count(old) == 1, old
    return RIGHT.replace(old, new)


def test_the_recipe_that_the_wrong_ones_are_made_from_is_right(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(RIGHT)
    assert list(load(file, kinds=KINDS).stages) == ["pairs", "clean", "teacher", "small", "scores"]


SIXTEEN = {
    "misspelt key": (
        swapped("steps: 100", "stepps: 100"),
        ["recipe.yaml:13:5 stages.teacher.stepps: unknown field 'stepps'"],
        "steps",
    ),
    "wrong type": (
        swapped("steps: 100", "steps: many"),
        ["recipe.yaml:13:12 stages.teacher.steps: expected an integer, got 'many'"],
        None,
    ),
    "negative count": (
        swapped("steps: 100", "steps: -5"),
        ["recipe.yaml:13:12 stages.teacher.steps: expected a positive integer, got -5"],
        None,
    ),
    "unknown kind": (
        swapped("kind: curate", "kind: currate"),
        ["recipe.yaml:7:11 stages.clean.kind: unknown stage kind 'currate'"],
        "curate",
    ),
    "unknown method": (
        swapped("method: plain", "method: plane"),
        ["recipe.yaml:14:13 stages.teacher.method: unknown method 'plane'"],
        "plain",
    ),
    "unknown reference": (
        swapped("models: [teacher, small]", "models: [teacher, smal]"),
        ["recipe.yaml:23:23 stages.scores.models.1: there is no stage 'smal'"],
        "small",
    ),
    "cycle": (
        swapped("open_clip:ViT-B-32/openai", "small"),
        [
            "recipe.yaml:9:41 stages.clean.steps.1.clip_score.model: stages need each other in a circle: "
            "clean → small → clean"
        ],
        None,
    ),
    "wrong artifact kind": (
        swapped("teacher: teacher", "teacher: pairs"),
        ["recipe.yaml:18:14 stages.small.teacher: 'pairs' is a Dataset (made by a data stage); a Model is wanted"],
        None,
    ),
    "YAML syntax": (
        swapped("data: clean\n    steps", "data: clean: x\n    steps"),
        ["recipe.yaml:12:16: not valid"],
        None,
    ),
    "duplicate keys": (
        swapped("steps: 100", "kind: train"),
        ["recipe.yaml:13:5 stages.teacher.kind: duplicate key 'kind'; it is already on line 11"],
        None,
    ),
    "tabs": (swapped("    steps: 100", "\tsteps: 100"), ["recipe.yaml:13:1: a tab is used for indentation"], None),
    "Python object tag": (
        swapped("source: emoji", "source: !!python/object/apply:os.getcwd []"),
        ["recipe.yaml:5:13 stages.pairs.source: the tag !!python/object/apply:os.getcwd is not allowed"],
        None,
    ),
    "UTF-16": (RIGHT.encode("utf-16"), ["recipe.yaml:1:1: the file is not UTF-8"], None),
    "empty": ("", ["recipe.yaml: the file is empty"], None),
    "50 MB": (b"a" * 50_000_000, ["recipe.yaml: the file has 50,000,000 bytes"], None),
}


@pytest.mark.parametrize("case", SIXTEEN)
def test_a_wrong_recipe_gets_one_clear_error_within_a_second(tmp_path, case):
    text, expected, suggestion = SIXTEEN[case]
    start = time.monotonic()
    found = problems_of(tmp_path, text)
    assert time.monotonic() - start < 1
    assert len(found) == len(expected)
    for (line, near, _), start_of_line in zip(found, expected, strict=True):
        assert line.startswith(start_of_line)
        assert near == suggestion


@pytest.mark.parametrize(
    ("override", "line", "suggestion"),
    [
        ("stages.teacher.stepz=5", "-s #1 stages.teacher.stepz: unknown field 'stepz'", "steps"),
        ("stages.teachr.steps=5", "-s #1 stages.teachr: there is no stage 'teachr'", "stages.teacher.steps"),
        ("stages.teacher.steps=lots", "-s #1 stages.teacher.steps: expected an integer, got 'lots'", None),
        ("stages.teacher.steps", "-s #1: an override is written path=value", None),
        ("stage.teacher.steps=5", "-s #1 stage: an override begins with stages or vars", "stages.teacher.steps"),
        ("vars.lr=1", "-s #1 vars.lr: there is no variable 'lr'", None),
        ("stages.teacher.steps.x=5", "-s #1 stages.teacher.steps.x: stages.teacher.steps is a single value", None),
        ("stages.clean.steps.7=dedup", "-s #1 stages.clean.steps.7: stages.clean.steps is a list of 2", None),
        ("stages.teacher.betas=[1", "-s #1 stages.teacher.betas: not valid YAML", None),
        (
            "stages.small.method.mimic.weight=7",
            "-s #1 stages.small.method.mimic.weight: expected a number of at",
            None,
        ),
    ],
)
def test_a_bad_override_is_shown_as_what_was_typed(tmp_path, override, line, suggestion):
    ((found, near, _),) = problems_of(tmp_path, RIGHT, override)
    assert found.startswith(line)
    assert near == suggestion


@pytest.mark.parametrize(
    ("old", "new", "line", "suggestion"),
    [
        (
            "{mimic: {temperature: 20}}",
            "{mimic: {temprature: 20}}",
            ":19:22 stages.small.method.mimic.temprature: unk",
            "temperature",
        ),
        ("{mimic: {temperature: 20}}", "{mimik: {}}", ":19:14 stages.small.method: unknown method 'mimik'", "mimic"),
        (
            "{mimic: {temperature: 20}}",
            "{mimic: {}, plain: {}}",
            ":19:13 stages.small.method: a method is written as",
            None,
        ),
        (
            "init: {from: teacher}",
            "init: {}",
            ":20:5 stages.small.init.from: is missing: The model whose weights",
            None,
        ),
        (
            "init: {from: teacher}",
            "init: teacher",
            ":20:11 stages.small.init: expected a mapping, got 'teacher'",
            None,
        ),
        (
            '{clip_score: {model: "open_clip:ViT-B-32/openai"}}',
            "clip_score",
            ":9:20 stages.clean.steps.1.model: is missing",
            None,
        ),
        ("steps: 100", "steps: '100'", ":13:12 stages.teacher.steps: expected an integer, got '100'", "100"),
        ("steps: 100", "steps: 100.0", ":13:12 stages.teacher.steps: expected an integer, got 100.0", "100"),
        ("steps: 100", "shuffle: yes", ":13:14 stages.teacher.shuffle: expected true or false, got 'yes'", "true"),
        ("steps: 100", "betas: 0.9", ":13:12 stages.teacher.betas: expected a list, got 0.9", "[0.9]"),
        ("steps: 100", "betas: [0.9, x]", ":13:18 stages.teacher.betas.1: expected a number, got 'x'", None),
        ("steps: 100", "size: [1]", ":13:11 stages.teacher.size: expected an integer or one of the allowed", None),
        ("steps: 100", "size: smal", ":13:11 stages.teacher.size: expected an integer or one of the allowed", "small"),
        ("steps: 100", "space: {a: b}", ":13:16 stages.teacher.space.a: expected a number, got 'b'", None),
        ("steps: 100", "learning_rate: .nan", ":13:20 stages.teacher.learning_rate: expected a finite number", None),
        (
            "steps: 100",
            "learning_rate: 0",
            ":13:20 stages.teacher.learning_rate: expected a positive number, got 0",
            None,
        ),
        ("steps: 100", "resources: {cpu: 2}", ":13:17 stages.teacher.resources.cpu: unknown field 'cpu'", "cpus"),
        (
            "teacher: teacher",
            "teacher: teacher.studdy",
            ":18:14 stages.small.teacher: stage 'teacher' has no output",
            "teacher.study",
        ),
        (
            "teacher: teacher",
            "teacher: openclip:ViT-B-32/x",
            ":18:14 stages.small.teacher: there is no stage",
            "open_clip:",
        ),
        (
            "teacher: teacher",
            "teacher: open_clip:ViT-B-32",
            ":18:14 stages.small.teacher: 'open_clip:ViT-B-32' is not comp",
            None,
        ),
        (
            "    data: pairs\n    steps",
            "    data: open_clip:a/b\n    steps",
            ":8:11 stages.clean.data: 'open_clip:a/b' is a Model; a Dataset",
            None,
        ),
        ("steps: 100", "blind: true", ":23:14 stages.scores.models.0: the model 'teacher' cannot encode_image", None),
        ("    kind: curate\n", "", ":6:3 stages.clean.kind: is missing: what kind of stage", None),
        ("name: demo", "nme: demo", ":1:1 nme: unknown field 'nme'", "name"),
        ("  teacher:\n", "  tea cher:\n", ":10:3 stages.tea cher: a stage's name has letters", None),
    ],
)
def test_errors_inside_fields_stand_where_the_value_stands(tmp_path, old, new, line, suggestion):
    found = problems_of(tmp_path, swapped(old, new))
    matching = [near for text, near, _ in found if text.startswith(f"recipe.yaml{line}")]
    assert matching == [suggestion], [text for text, _, _ in found]


def test_all_problems_are_said_at_once_in_the_order_of_the_file(tmp_path):
    text = (
        RIGHT.replace("kind: data\n", "kind: dta\n")
        .replace("steps: 100", "stepps: 100")
        .replace("[teacher, small]", "[x]")
    )
    found = problems_of(tmp_path, text, "stages.small.seed=a", "stages.nowhere.seed=1")
    assert [line.partition(": ")[0] for line, _, _ in found] == [
        "recipe.yaml:4:11 stages.pairs.kind",
        "recipe.yaml:13:5 stages.teacher.stepps",
        "recipe.yaml:23:14 stages.scores.models.0",
        "-s #1 stages.small.seed",
        "-s #2 stages.nowhere",
    ]


def test_a_stage_that_is_refused_is_not_missing_where_it_is_referred_to(tmp_path):
    found = problems_of(tmp_path, swapped("    kind: data", "    kind: dta"))
    assert len(found) == 1


def test_an_unknown_field_lists_the_allowed_ones(tmp_path):
    ((_, _, allowed),) = problems_of(tmp_path, swapped("steps: 100", "stepps: 100"))
    assert {"kind", "matrix", "steps", "learning_rate", "resources"} <= set(allowed)


def test_the_rendered_error_shows_the_line_with_a_caret(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(swapped("steps: 100", "steps: -5"))
    with pytest.raises(RecipeError) as caught:
        load(file, kinds=KINDS)
    assert str(caught.value).split("\n")[1:] == ["        steps: -5", "               ^"]


@pytest.mark.parametrize("text", ["- a", "just text", "stages: {}", "stages: [a]", "stages: {a: 1}", "name: x"])
def test_something_that_is_no_recipe_is_refused(tmp_path, text):
    assert problems_of(tmp_path, text)


def test_what_is_wrong_with_a_stage_as_a_whole_stands_at_its_name(tmp_path, monkeypatch):
    class Picky(KINDS["train"]):
        @model_validator(mode="after")
        def _never(self):
            raise ValueError("one of a and b is needed")

    monkeypatch.setitem(KINDS._loaded, "train", Picky)
    found = problems_of(tmp_path, RIGHT)
    assert [line for line, _, _ in found] == [
        "recipe.yaml:10:3 stages.teacher: one of a and b is needed",
        "recipe.yaml:15:3 stages.small: one of a and b is needed",
    ]
