"""Wrong recipes at the command line: one clear error, exit code 2, within a moment, and nothing is started."""

from __future__ import annotations

import pytest
from system_orch import DEMO, Orch

RIGHT = DEMO.read_text()


def swapped(old: str, new: str) -> str:
    assert RIGHT.count(old) == 1, old
    return RIGHT.replace(old, new)


WRONG: dict[str, tuple[str | bytes, str]] = {
    "misspelt key": (swapped("    steps: 500", "    stepps: 500"), "did you mean steps?"),
    "wrong type": (swapped("steps: 500", "steps: many"), "stages.teacher.steps: expected an integer, got 'many'"),
    "negative count": (
        swapped("steps: 500", "steps: -5"),
        "steps: expected a positive integer, got -5",
    ),
    "unknown kind": (swapped("kind: pretrain", "kind: pretrian"), "did you mean pretrain?"),
    "unknown method": (swapped("method: clip", "method: clop"), "did you mean clip?"),
    "unknown reference": (swapped("[teacher, mid, small, scratch]", "[teacher, mid, smal, scratch]"), "mean small?"),
    "cycle": (swapped("init: {from: teacher}", "init: {from: small}"), "stages need each other in a circle"),
    "wrong artifact kind": (swapped("init: {from: mid}", "init: {from: clean}"), "a Model is wanted"),
    "YAML syntax": (swapped("model: emoji-96x4", "model: emoji: 96x4"), "not valid"),
    "duplicate keys": (swapped("    model: emoji-96x4", "    kind: pretrain"), "duplicate key 'kind'"),
    "tabs": (swapped("    steps: 500", "\tsteps: 500"), "a tab is used for indentation"),
    "Python object tag": (
        swapped("source: emoji", "source: !!python/object/apply:os.getcwd []"),
        "the tag !!python/object/apply:os.getcwd is not allowed",
    ),
    "UTF-16": (RIGHT.encode("utf-16"), "the file is not UTF-8"),
    "empty": ("", "the file is empty"),
    "50 MB": (b"a" * 50_000_000, "the file has 50,000,000 bytes"),
}
OVERRIDE = "bad override"


@pytest.fixture
def fresh(orch, tmp_path) -> Orch:
    """The command on a machine where nothing was ever run."""
    home = tmp_path / "home"
    return Orch(home, orch.environment | {"ORCH_HOME": str(home)}, tmp_path)


@pytest.mark.parametrize("case", [*WRONG, OVERRIDE])
def test_a_wrong_recipe_gets_one_clear_error_and_starts_nothing(case, fresh, tmp_path):
    content, expected = WRONG.get(case, (RIGHT, "-s #1 stages.teacher.stepz: unknown field 'stepz'"))
    (tmp_path / "recipe.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    more = ["-s", "stages.teacher.stepz=5"] if case == OVERRIDE else []
    said = fresh("submit", "recipe.yaml", *more, exit_code=2)
    assert expected in said.err
    assert said.err.startswith("error: ")
    assert said.err.count("recipe.yaml:") + said.err.count("-s #1") == 1
    assert "Traceback" not in said.err
    assert said.out == ""
    assert said.wall_s < 3  # 1 s on a quiet machine
    assert not fresh.home.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["submt", "x.yaml"], "Did you mean 'submit'?"),
        (["submit", "nowhere.yaml"], "nowhere.yaml"),
        (["submit", str(DEMO), "--until", "smal"], "did you mean small"),
        (["submit", str(DEMO), "--rerun", "smal"], "did you mean small"),
        (["plan", str(DEMO), "--jsn"], "--jsn"),
    ],
)
def test_a_wrong_command_line_is_refused_with_what_is_meant(words, expected, fresh):
    said = fresh(*words, exit_code=2)
    assert expected in said.err
    assert "Traceback" not in said.err
    assert not fresh.home.exists()


def test_all_mistakes_are_told_at_once_each_with_its_place(fresh, tmp_path):
    wrong = swapped("steps: 500", "stepps: 500").replace("method: clip", "method: clop")
    (tmp_path / "recipe.yaml").write_text(wrong)
    err = fresh("plan", "recipe.yaml", exit_code=2).err
    lines = RIGHT.splitlines()
    for text in ("    steps: 500", "    method: clip"):
        assert f"recipe.yaml:{lines.index(text) + 1}:" in err
