"""From files and command line to one tree of plain values: `extends`, overrides, `${vars.…}`.

`extends` merges deeply: mappings key by key, everything else is replaced. The one exception is a choice (`method:
{clip: …}`): another name replaces it whole. `name` and `description` belong to their file and are not inherited.
Overrides are applied after merging, variables are filled in last, so an override of a variable reaches every use.
Marks follow their values all the way.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.recipe import yaml
from orchestrator.recipe.annotations import sites
from orchestrator.recipe.errors import Path, Position, Problem, RecipeError, dotted, nearest
from orchestrator.recipe.schema import Config
from orchestrator.recipe.yaml import Document, Mark, Marks

_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_OVERRIDABLE = ("stages", "vars", "name", "description")


def read_extended(path: str, kinds: Mapping[str, type[Config]], seen: tuple[str, ...] = ()) -> Document:
    """A file merged over the one it extends, recursively; RecipeError if a file is wrong or extends itself."""
    document = yaml.read(path)
    if not isinstance(document.value, dict):
        place = document.marks[()].value
        raise RecipeError([Problem(place, (), "a recipe is a mapping with `stages`", document.value)])
    base = document.value.pop("extends", None)
    if base is None:
        return document
    place = document.marks[("extends",)].value
    if not isinstance(base, str):
        raise RecipeError([Problem(place, ("extends",), "expected the path of another recipe", base)])
    target = os.path.join(os.path.dirname(path), base)
    chain = (*seen, os.path.realpath(path))
    if os.path.realpath(target) in chain:
        names = " → ".join(os.path.basename(p) for p in (*chain, target))
        raise RecipeError([Problem(place, ("extends",), f"recipes extend each other in a circle: {names}")])
    if not os.path.exists(target):
        folder = os.path.dirname(target) or "."
        found = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        near = nearest(os.path.basename(target), found)
        suggestion = near and os.path.join(os.path.dirname(base), near)
        message = f"there is no recipe '{base}' (paths are relative to this file)"
        raise RecipeError([Problem(place, ("extends",), message, base, suggestion)])
    below = read_extended(target, kinds, chain)
    for own in ("name", "description"):
        below.value.pop(own, None)
    return merge(below, document, kinds)


def merge(base: Document, over: Document, kinds: Mapping[str, type[Config]]) -> Document:
    """`over` laid on `base`; marks of what remains of `base` stay."""
    value = _merged(base.value, over.value, (), _choices(base.value, over.value, kinds))
    marks = {path: mark for path, mark in base.marks.items() if _reaches(value, path)}
    return Document(value, {**marks, **over.marks})


def _merged(base: Any, over: Any, path: Path, choices: set[Path]) -> Any:
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    if path in choices and base.keys() != over.keys():
        return over
    merged = dict(base)
    for key, value in over.items():
        merged[key] = _merged(base[key], value, (*path, key), choices) if key in base else value
    return merged


def _choices(base: Any, over: Any, kinds: Mapping[str, type[Config]]) -> set[Path]:
    """Paths in `base` whose mapping is a choice from a table."""
    found: set[Path] = set()
    stages = base.get("stages")
    for name, values in stages.items() if isinstance(stages, dict) else ():
        other = over.get("stages")
        changed = other.get(name) if isinstance(other, dict) else None
        kind = (changed if isinstance(changed, dict) else {}).get("kind") or (
            values.get("kind") if isinstance(values, dict) else None
        )
        if isinstance(kind, str) and kind in kinds:
            found |= {("stages", name, *site.path) for site in sites(kinds[kind], values) if site.table is not None}
    return found


def _reaches(value: Any, path: Path) -> bool:
    for part in path:
        if not has(value, part):
            return False
        value = value[part]
    return True


def has(value: Any, part: str | int) -> bool:
    """Whether a plain container has a key or an index."""
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, dict) and part in value


def override(document: Document, overrides: Sequence[str]) -> list[Problem]:
    """Apply `stages.small.steps=50` and the like in place; what cannot be applied is returned."""
    problems: list[Problem] = []
    for number, text in enumerate(overrides, start=1):
        place = Position(f"-s #{number}", text=text)
        try:
            _override(document, text, place)
        except RecipeError as error:
            problems += error.problems
    return problems


def _override(document: Document, text: str, place: Position) -> None:
    target, equals, written = text.partition("=")
    parts = target.strip().split(".")
    if not equals or not all(parts):
        message = "an override is written path=value, for instance stages.small.steps=50"
        raise RecipeError([Problem(place, (), message, text)])
    try:
        parsed = yaml.parse(written, place.file) if written.strip() else Document(None, {(): Mark(None, place)})
    except RecipeError as error:  # its own positions count inside the value, which nobody sees
        raise RecipeError([Problem(place, tuple(parts), error.problems[0].message, written)]) from None
    path = assign(document.value, parts, parsed.value, place)
    for gone in [p for p in document.marks if p[: len(path)] == path]:
        del document.marks[gone]
    for length in range(1, len(path)):
        document.marks.setdefault(path[:length], Mark(place, place))
    for below in parsed.marks:
        document.marks[path + below] = Mark(place, place)


def assign(root: dict[str, Any], parts: list[str], value: Any, place: Position, path: Path = ()) -> Path:
    """Put a value into nested containers, in place, and return its path (`root` stands at `path`).

    Containers that are missing are made; stages and variables are not. RecipeError if the path leads nowhere.
    """
    container: Any = root
    while True:
        key, parts = _key(container, parts, path, place)
        if not parts:
            container[key] = value
            return (*path, key)
        below: Any = container[key] if has(container, key) else None
        if below is None:
            below = {}
        elif isinstance(below, str) and below == parts[0]:  # `method: clip`, now with options
            below = {below: {}}
        container[key] = below
        path = (*path, key)
        container = below


def _key(container: Any, parts: list[str], path: Path, place: Position) -> tuple[str | int, list[str]]:
    """The next key of a container, and what remains; a key with dots in it is found as the longest that fits."""

    def refuse(message: str, choices: Sequence[str] = ()) -> RecipeError:
        near = nearest(parts[0], choices)
        suggestion = near and dotted((*path, near, *parts[1:]))
        return RecipeError([Problem(place, (*path, parts[0]), message, parts[0], suggestion, tuple(choices))])

    if isinstance(container, list):
        if not parts[0].isdigit() or int(parts[0]) >= len(container):
            raise refuse(f"{dotted(path)} is a list of {len(container)}; its items are numbered from 0")
        return int(parts[0]), parts[1:]
    if not isinstance(container, dict):
        raise refuse(f"{dotted(path)} is a single value and has no field '{parts[0]}'")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in container:
            return ".".join(parts[:length]), parts[length:]
    if path == () and parts[0] not in _OVERRIDABLE:
        raise refuse("an override begins with stages or vars", _OVERRIDABLE)
    if path in (("stages",), ("vars",)):
        raise refuse(f"there is no {'stage' if path == ('stages',) else 'variable'} '{parts[0]}'", list(container))
    return parts[0], parts[1:]


def fill_variables(document: Document) -> list[Problem]:
    """Replace `${vars.x}` everywhere, in place. A value that is nothing else keeps the variable's type."""
    variables = document.value.get("vars")
    filler = _Filler(variables if isinstance(variables, dict) else {}, document.marks)
    for name in filler.variables:
        filler.variable(name, ("vars", name))
    for key, value in document.value.items():
        if key != "vars":
            document.value[key] = filler.fill(value, (key,))
    if isinstance(variables, dict):
        document.value["vars"] = {name: filler.done.get(name) for name in variables}
    return filler.problems


class _Filler:
    def __init__(self, variables: dict[str, Any], marks: Marks) -> None:
        self.variables = variables
        self.marks = marks
        self.done: dict[str, Any] = {}
        self.filling: list[str] = []
        self.problems: list[Problem] = []

    def fill(self, value: Any, path: Path) -> Any:
        if isinstance(value, dict):
            return {key: self.fill(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self.fill(item, (*path, number)) for number, item in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        if whole := _VARIABLE.fullmatch(value):
            return self.use(whole[1], path)
        return _VARIABLE.sub(lambda match: _text(self.use(match[1], path)), value)

    def use(self, written: str, path: Path) -> Any:
        scope, _, name = written.strip().partition(".")
        if scope != "vars" or not name:
            self.refuse(path, f"'${{{written}}}' is not known; only ${{vars.NAME}} is", None)
            return None
        if name not in self.variables:
            near = nearest(name, self.variables)
            self.refuse(path, f"there is no variable '{name}'", near and f"${{vars.{near}}}", tuple(self.variables))
            return None
        return self.variable(name, path)

    def variable(self, name: str, path: Path) -> Any:
        if name in self.filling:
            circle = " → ".join([*self.filling[self.filling.index(name) :], name])
            self.refuse(path, f"variables use each other in a circle: {circle}", None)
            return None
        if name not in self.done:
            self.filling.append(name)
            self.done[name] = self.fill(self.variables[name], ("vars", name))
            self.filling.pop()
        return self.done[name]

    def refuse(self, path: Path, message: str, suggestion: str | None, allowed: tuple[str, ...] = ()) -> None:
        self.problems.append(Problem(position(self.marks, path), path, message, None, suggestion, allowed))


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def position(marks: Marks, path: Path, of_key: bool = False) -> Position:
    """Where a path stands: its value, or its key; the nearest place around it if it has none of its own."""
    for length in range(len(path), -1, -1):
        mark = marks.get(path[:length])
        if mark is not None:
            key_wanted = of_key or length < len(path)
            return mark.key if key_wanted and mark.key is not None else mark.value
    return Position("recipe")
