"""`load`: a recipe file and overrides to a checked `Recipe`, or one `RecipeError` with everything that is wrong.

    read → extend → override → fill variables → expand matrix → validate each stage → check references

Credentials in it are refused before all else. What is wrong with one stage does not hide what is wrong with another,
nor a reference to it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from orchestrator.io.redact import found, redact
from orchestrator.recipe import matrix, messages
from orchestrator.recipe.compose import fill_variables, override, position, read_extended
from orchestrator.recipe.errors import Path, Problem, RecipeError, nearest, raise_problems, shown
from orchestrator.recipe.recipe import STAGE_FIELDS, Recipe, RecipeFile, StageSpec
from orchestrator.recipe.references import resolve
from orchestrator.recipe.schema import Config
from orchestrator.recipe.yaml import Document, Marks

_STAGE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


def load(path: str | os.PathLike[str], overrides: Sequence[str] = (), *, kinds: Mapping[str, type[Config]]) -> Recipe:
    """Load a recipe.

    Args:
        path: the YAML file.
        overrides: `stages.small.steps=50`, `vars.lr=1e-3`; values are YAML.
        kinds: the table of stage kinds.

    Raises:
        RecipeError: with all problems.
    """
    document = read_extended(os.fspath(path), kinds)
    problems = override(document, overrides)
    problems += fill_variables(document)
    raise_problems(_credentials(document.value, document.marks))  # before anything could show them
    file = _validate_top(document, problems)
    arms = _expand(document, kinds, problems)
    stages = _validate_stages(arms, document, kinds, problems)
    problems += resolve(stages, broken=_stages(document).keys() - arms.keys())[1]
    raise_problems(problems)
    assert file is not None
    return Recipe(
        name=file.name or FilePath(path).stem,
        path=os.fspath(path),
        description=file.description,
        stages=stages,
        groups={name: tuple(a.name for a in group) for name, group in arms.items() if group[0].picks},
        values=document.value,
    )


def _credentials(value: Any, marks: Marks, path: Path = ()) -> list[Problem]:
    """Everything in the recipe that would let its reader in: recipes are kept, shown and shared."""
    if isinstance(value, dict):
        return [p for key, each in value.items() for p in _credentials(each, marks, (*path, key))]
    if isinstance(value, list):
        return [p for number, each in enumerate(value) for p in _credentials(each, marks, (*path, number))]
    kind = found(value) if isinstance(value, str) else None
    if kind is None:
        return []
    place = position(marks, path)
    remedy = "leave it out: credentials come from the environment (AWS_ACCESS_KEY_ID, ...), a profile or a role"
    return [Problem(replace(place, text=redact(place.text)), path, f"holds {kind}; {remedy}")]


def _validate_top(document: Document, problems: list[Problem]) -> RecipeFile | None:
    try:
        return RecipeFile.model_validate(document.value)
    except ValidationError as error:
        problems += messages.problems(error.errors(), RecipeFile, document.value, document.marks)
        return None


def _stages(document: Document) -> dict[str, dict[str, Any]]:
    """The stages that are at least mappings; the others are refused with the top of the recipe."""
    stages = document.value.get("stages")
    return {n: v for n, v in stages.items() if isinstance(v, dict)} if isinstance(stages, dict) else {}


def _expand(
    document: Document, kinds: Mapping[str, type[Config]], problems: list[Problem]
) -> dict[str, list[matrix.Arm]]:
    """The arms of every stage whose kind is known; a list of one without picks for a stage without matrix."""
    arms: dict[str, list[matrix.Arm]] = {}
    for name, values in _stages(document).items():
        path = ("stages", name)
        if not _STAGE_NAME.fullmatch(name):
            message = "a stage's name has letters, digits, _ and -, and begins with a letter"
            problems.append(Problem(position(document.marks, path, of_key=True), path, message, name))
            continue
        kind = values.get("kind")
        if not isinstance(kind, str) or kind not in kinds:
            problems.append(_wrong_kind(document, name, values, kinds))
            continue
        try:
            arms[name] = matrix.expand(name, values, document.marks)
        except RecipeError as error:
            problems += error.problems
    return arms


def _wrong_kind(document: Document, name: str, values: Mapping[str, Any], kinds: Mapping[str, Any]) -> Problem:
    path = ("stages", name, "kind")
    if "kind" not in values:
        place = position(document.marks, path, of_key=True)
        return Problem(place, path, "is missing: what kind of stage this is", None, None, tuple(kinds))
    kind = values["kind"]
    near = nearest(kind, kinds) if isinstance(kind, str) else None
    return Problem(position(document.marks, path), path, f"unknown stage kind {shown(kind)}", kind, near, tuple(kinds))


def _validate_stages(
    arms: Mapping[str, list[matrix.Arm]],
    document: Document,
    kinds: Mapping[str, type[Config]],
    problems: list[Problem],
) -> dict[str, StageSpec]:
    groups = {name: group for name, group in arms.items() if group[0].picks}
    stages: dict[str, StageSpec] = {}
    for name, group in arms.items():
        kind = document.value["stages"][name]["kind"]
        for arm in group:
            problems += matrix.link(arm, kinds[kind], groups)
            config = None
            try:
                config = kinds[kind].model_validate(arm.values)
            except ValidationError as error:
                problems += messages.problems(
                    error.errors(), kinds[kind], arm.values, arm.marks, arm.path, STAGE_FIELDS
                )
            stages[arm.name] = StageSpec(
                arm.name, kind, kinds[kind], config, arm.values, arm.marks, arm.path, arm.picks
            )
    return stages
