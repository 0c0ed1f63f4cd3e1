"""`matrix:` multiplies a stage: fields with lists of values, whose product makes its arms:
`arms[seed=0,init.keep=0.5]`.

A reference to `arms` in a list means all arms in order, `arms[seed=1]` those that fit; where one artifact is wanted,
the pick must leave one arm. References are rewritten to the arms' full names before validation, so that nothing
after it knows a matrix.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.recipe import yaml
from orchestrator.recipe.annotations import sites
from orchestrator.recipe.compose import assign, position
from orchestrator.recipe.errors import Path, Position, Problem, RecipeError, nearest, shown
from orchestrator.recipe.schema import Config, Reference
from orchestrator.recipe.yaml import Mark, Marks

_STAGE_REFERENCE = re.compile(r"(?P<stage>[A-Za-z_][\w-]*)(\[(?P<picks>[^\]]*)\])?(\.(?P<output>[A-Za-z_]\w*))?")


@dataclass
class Arm:
    """One stage after expansion: plain values without `kind` and `matrix`, and marks that follow them."""

    name: str
    path: Path
    values: dict[str, Any]
    marks: Marks
    picks: dict[str, str] = field(default_factory=dict)
    """Labels by field, as in the name."""
    picked: dict[str, Any] = field(default_factory=dict)
    """The values behind the labels."""


def split(text: str) -> tuple[str, str | None, str | None] | None:
    """(stage, picks, output) of a reference to a stage, or None if it is not written like one."""
    match = _STAGE_REFERENCE.fullmatch(text)
    return (match["stage"], match["picks"], match["output"]) if match else None


def expand(name: str, values: Mapping[str, Any], marks: Marks) -> list[Arm]:
    """The arms of a stage, or the stage itself if it has no matrix; RecipeError if the matrix is wrong."""
    path: Path = ("stages", name)
    plain = {key: value for key, value in values.items() if key not in ("kind", "matrix")}
    if "matrix" not in values:
        return [Arm(name, path, plain, marks)]
    matrix = values["matrix"]
    _check(matrix, (*path, "matrix"), marks)
    labels = {axis: _labels(items) for axis, items in matrix.items()}
    arms = []
    for numbers in itertools.product(*(range(len(items)) for items in matrix.values())):
        chosen = dict(zip(matrix, numbers, strict=True))
        picks = {axis: labels[axis][number] for axis, number in chosen.items()}
        arm = Arm(
            name=f"{name}[{','.join(f'{axis}={label}' for axis, label in picks.items())}]",
            path=path,
            values=copy.deepcopy(plain),
            marks=dict(marks),
            picks=picks,
            picked={axis: matrix[axis][number] for axis, number in chosen.items()},
        )
        for axis, number in chosen.items():
            _place(arm, axis, number)
        arms.append(arm)
    return arms


def _check(matrix: Any, path: Path, marks: Marks) -> None:
    problems = []
    if not isinstance(matrix, dict) or not matrix:
        message = f"expected fields with lists of values, for instance {{seed: [0, 1, 2]}}, got {shown(matrix)}"
        problems.append(Problem(position(marks, path), path, message, matrix))
    for axis, items in matrix.items() if isinstance(matrix, dict) else ():
        if not isinstance(items, list) or not items:
            message = f"expected a list of at least one value, got {shown(items)}"
            problems.append(Problem(position(marks, (*path, axis)), (*path, axis), message, items))
        elif any(item in items[:number] for number, item in enumerate(items)):
            message = f"a value is listed twice: {shown(items)}"
            problems.append(Problem(position(marks, (*path, axis)), (*path, axis), message, items))
    if problems:
        raise RecipeError(problems)


def _place(arm: Arm, axis: str, number: int) -> None:
    """Put an axis's value into the arm, with the positions it has in the matrix."""
    source = (*arm.path, "matrix", axis)
    key = position(arm.marks, source, of_key=True)
    target = assign(arm.values, axis.split("."), copy.deepcopy(arm.picked[axis]), key, arm.path)
    for gone in [p for p in arm.marks if p[: len(target)] == target]:
        del arm.marks[gone]
    for length in range(len(arm.path) + 1, len(target)):
        arm.marks.setdefault(target[:length], Mark(key, key))
    item = (*source, number)
    for path, mark in [(p, m) for p, m in arm.marks.items() if p[: len(item)] == item]:
        below = path[len(item) :]
        arm.marks[target + below] = mark if below else Mark(key, mark.value)


def _labels(items: list[Any]) -> list[str]:
    """Short distinct names for an axis's values; their numbers where values have none."""
    labels = [_label(item) for item in items]
    if None in labels or len(set(labels)) < len(labels):
        return [str(number) for number in range(len(items))]
    return [label for label in labels if label is not None]


def _label(value: Any) -> str | None:
    if isinstance(value, dict) and len(value) == 1:
        value = next(iter(value))
    if isinstance(value, dict | list):
        return None
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return re.sub(r"[^\w.+-]+", "-", text) or None


def link(arm: Arm, config: type[Config], groups: Mapping[str, list[Arm]]) -> list[Problem]:
    """Rewrite an arm's references to matrix stages into full names, in place; what cannot be is returned."""
    problems: list[Problem] = []
    in_lists: dict[Path, dict[int, list[str]]] = {}
    for site in list(sites(config, arm.values)):
        if not (isinstance(site.wanted, type) and issubclass(site.wanted, Reference) and isinstance(site.value, str)):
            continue
        found = split(site.value)
        if found is None or found[0] not in groups:
            continue
        full = (*arm.path, *site.path)
        place = position(arm.marks, full)
        try:
            names = _resolve(site.value, found, groups[found[0]], place, full)
            if isinstance(site.path[-1], int):
                in_lists.setdefault(site.path[:-1], {})[site.path[-1]] = names
            else:
                _at(arm.values, site.path[:-1])[site.path[-1]] = _single(names, site.value, place, full)
        except RecipeError as error:
            problems += error.problems
    for path, spliced in in_lists.items():
        _splice(arm, path, spliced)
    return problems


def _resolve(
    text: str, parts: tuple[str, str | None, str | None], arms: list[Arm], place: Position, path: Path
) -> list[str]:
    """Names of the arms that a reference means."""
    stage, picks, output = parts
    wanted: dict[str, str] = {}
    axes = list(arms[0].picks)
    for pick in picks.split(",") if picks else ():
        axis, equals, label = (part.strip() for part in pick.partition("="))
        if not equals or axis not in axes:
            message = f"'{pick.strip()}' picks nothing of '{stage}'; write [field=value]"
            raise RecipeError([Problem(place, path, message, text, nearest(axis, axes), tuple(axes))])
        wanted[axis] = label
    fitting = [arm for arm in arms if all(_fits(arm, axis, label) for axis, label in wanted.items())]
    if not fitting:
        allowed = tuple(arm.name for arm in arms)
        raise RecipeError([Problem(place, path, f"'{text}' fits no arm", text, nearest(text, allowed), allowed)])
    return [arm.name + (f".{output}" if output else "") for arm in fitting]


def _fits(arm: Arm, axis: str, label: str) -> bool:
    if arm.picks[axis] == label:
        return True
    value = yaml.scalar(label)
    return type(value) is type(arm.picked[axis]) and value == arm.picked[axis]


def _single(names: list[str], text: str, place: Position, path: Path) -> str:
    if len(names) > 1:
        message = f"'{text}' means {len(names)} stages, and one is wanted here; pick one"
        raise RecipeError([Problem(place, path, message, text, None, tuple(names))])
    return names[0]


def _splice(arm: Arm, path: Path, spliced: Mapping[int, list[str]]) -> None:
    """Replace items of a list by several each; every new item keeps the position of the old one."""
    old = _at(arm.values, path)
    places = [position(arm.marks, (*arm.path, *path, number)) for number in range(len(old))]
    new = [(name, places[number]) for number, item in enumerate(old) for name in spliced.get(number, [item])]
    arm.marks = dict(arm.marks)
    for number, (_, place) in enumerate(new):
        arm.marks[(*arm.path, *path, number)] = Mark(None, place)
    container, last = _at(arm.values, path[:-1]), path[-1]
    container[last] = [name for name, _ in new]


def _at(values: Any, path: Path) -> Any:
    for part in path:
        values = values[part]
    return values
