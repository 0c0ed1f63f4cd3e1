"""What the pages and recipes promise: every command and snippet in them is right, every shipped recipe plans."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from system_orch import DEMO, ROOT

from orchestrator.cli.main import COMMANDS
from orchestrator.cli.main import orch as group
from orchestrator.data.sets import SETS
from orchestrator.engine.metrics import FIGURES
from orchestrator.engine.planning import request
from orchestrator.recipe.json_schema import schema
from orchestrator.stages import KINDS
from orchestrator.store.artifacts import Store
from orchestrator.training.__main__ import parser
from orchestrator.training.config import TrainSettings

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TRAINING = ROOT / "docs" / "training.md"
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
SCHEMA = ROOT / "recipes" / "schema.json"


def blocks(language: str, page: Path = ROOT / "README.md") -> list[str]:
    """A page's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def written(page: Path) -> list[str]:
    """Every `orch ...` in a page: in code blocks, indented lines, and between backticks."""
    text = page.read_text()
    lines = re.findall(r"^(?: {4})?(?:\.venv/bin/)?(orch [a-z].*?)(?:  +.*| +#.*)?$", text, re.MULTILINE)
    return lines + re.findall(r"`(orch [^`]+)`", text)


@pytest.mark.parametrize(
    ("page", "line"), [(page.name, line) for page in PAGES for line in dict.fromkeys(written(page))]
)
def test_every_command_in_the_pages_exists_with_its_options(page, line):
    words = [word.strip("[]") for word in shlex.split(line)[1:]]
    assert words[0] in COMMANDS, f"{page}: {line}"
    command: click.Command = group
    context = click.Context(group)
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        assert found is not None, f"{page}: {line}"
        command, words = found, words[1:]
        if not words:
            return  # the command is only mentioned
    command.make_context(command.name, words)


def test_every_command_there_is_stands_in_the_readme():
    documented = {line.split()[1] for line in written(ROOT / "README.md")}
    assert documented == set(COMMANDS)


def test_the_readmes_recipe_plans(orch, tmp_path):
    (text,) = blocks("yaml")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    planned = json.loads(orch("plan", recipe, "--store", tmp_path / "store", "--json").out)
    assert [stage["stage"] for stage in planned["stages"]] == list(yaml.safe_load(text)["stages"])


@pytest.mark.ray
@pytest.mark.timeout(300, func_only=True)
def test_the_readmes_python_runs_and_scores_a_picture(orch, demo, tmp_path):
    """As it stands, where `recipes/tinyclip_progressive.yaml` is the demo at the size that is there already."""
    (snippet,) = blocks("python")
    steps = {word.partition("=")[0].split(".")[1]: int(word.partition("=")[2]) for word in demo.overrides[1::2]}
    recipe = {"extends": str(DEMO), "name": "tinyclip-progressive"}
    recipe["stages"] = {stage: {"steps": count} for stage, count in steps.items()}
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / DEMO.name).write_text(yaml.safe_dump(recipe))
    (tmp_path / "cat.png").write_bytes(picture_of_the_sample_set())
    shown = "\nassert result.ok\nprint(list(scores.shape), bool(scores.isfinite().all()))"
    done = subprocess.run(
        [sys.executable, "-c", snippet + shown],
        env=orch.environment | {"ORCH_STORE": demo.store},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[1, 2] True"


def picture_of_the_sample_set() -> bytes:
    """The first image of the built-in set."""
    import tarfile

    shard = sorted(Path(ROOT, "orchestrator", "data", "sets", next(iter(SETS))).glob("*.tar"))[0]
    with tarfile.open(shard) as tar:
        member = next(m for m in tar if m.name.endswith(".webp"))
        file = tar.extractfile(member)
        assert file is not None
        return file.read()


@pytest.mark.parametrize("text", blocks("yaml", TRAINING))
def test_every_snippet_of_the_training_page_is_a_recipe_or_settings_of_a_stage(text, tmp_path):
    written = yaml.safe_load(text)
    if "stages" not in written:
        stage = {"kind": "pretrain", "data": "pairs", "model": "tiny"} | written
        stage |= {} if stage.keys() & {"steps", "samples", "epochs"} else {"steps": 10}
        written = {"stages": {"pairs": {"kind": "dataset", "source": "emoji"}, "stage": stage}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(written))
    request(tmp_path / "recipe.yaml").compile(Store.open(str(tmp_path / "store")))


def test_the_training_page_speaks_of_every_setting_and_figure():
    page = TRAINING.read_text()
    assert [name for name in TrainSettings.model_fields if not re.search(rf"`{name}`|\b{name}:", page)] == []
    assert [name for name in FIGURES if f"`{name}`" not in page] == []


@pytest.mark.parametrize("line", re.findall(r"-m orchestrator\.training (.*)", TRAINING.read_text()))
def test_every_training_command_of_the_page_is_one(line):
    assert parser().parse_args(shlex.split(line)).stage == "teacher"


def test_the_set_up_script_knows_the_readmes_two_commands():
    asked = re.findall(r"^python3 bootstrap\.py (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert asked == ["demo", "test"]
    help_text = subprocess.run(
        [sys.executable, ROOT / "bootstrap.py", "--help"], capture_output=True, text=True, timeout=30, check=True
    ).stdout
    for word in asked:
        assert word in help_text


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.relative_to(ROOT / "recipes").as_posix())
def test_every_shipped_recipe_plans_and_names_the_schema_beside_it(recipe, orch, tmp_path):
    orch("plan", recipe, "--store", tmp_path / "store", "--json")
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", recipe.read_text())
    assert named is not None
    assert (recipe.parent / named[1]).resolve() == SCHEMA


def test_the_shipped_schema_is_that_of_the_code():
    assert json.loads(SCHEMA.read_text()) == schema(KINDS), "write it anew: orch show schema > recipes/schema.json"
