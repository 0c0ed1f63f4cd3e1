"""From pydantic's errors to plain sentences with positions.

pydantic knows what is wrong; here it is said in the recipe's words: positions from the marks, nested errors of
`OneOf` members unfolded to their own places, the alternatives of a union gathered into one sentence, and for a
misspelt field the nearest right one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.recipe.annotations import config_at, fields, sites
from orchestrator.recipe.compose import has, position
from orchestrator.recipe.errors import Path, Problem, nearest, shown
from orchestrator.recipe.schema import Config
from orchestrator.recipe.yaml import Marks

_WANTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "mapping_type": "a mapping",
    "finite_number": "a finite number",
    "none_required": "nothing",
}
_BOUNDS = {
    "greater_than": "above",
    "greater_than_equal": "of at least",
    "less_than": "below",
    "less_than_equal": "of at most",
}
_LENGTHS = ("string_too_short", "too_short", "too_long", "multiple_of", "string_pattern_mismatch")
_PHRASED = {*_WANTED, *_BOUNDS, *_LENGTHS, "literal_error"}
_SHAPES = {*_WANTED, "literal_error"}
Located = list[tuple[Path, Mapping[str, Any]]]
"""Errors with the paths of the values they are about."""
_SWITCHES = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


def problems(
    errors: Sequence[Mapping[str, Any]],
    config: type[Config],
    values: Any,
    marks: Marks,
    path: Path = (),
    extra: tuple[str, ...] = (),
) -> list[Problem]:
    """Problems for pydantic's `errors` about `values`, which stand at `path`.

    Args:
        errors: `ValidationError.errors()`.
        config: the class they come from.
        values: the plain values that were validated.
        marks: positions of the recipe.
        path: where the values stand in the recipe.
        extra: fields allowed beside the class's own, at the top.
    """
    found: list[Problem] = []
    for group in _without_union_tags(errors, values):
        found += _problem(group, config, values, marks, path, extra)
    return found


def _without_union_tags(errors: Sequence[Mapping[str, Any]], values: Any) -> list[Located]:
    """Errors in groups that are one problem each, with the paths of the values they are about.

    pydantic puts names of union members into locations. Of a union, the members are kept whose errors lie inside the
    value: those are what was meant.
    """
    groups: list[Located] = []
    unions: dict[Path, dict[Any, Located]] = {}
    for error in errors:
        path, tag_at, tag = _real_path(error, values)
        if tag_at is None:
            groups.append([(path, error)])
        else:
            unions.setdefault(path[:tag_at], {}).setdefault(tag, []).append((path, error))
    for at, members in unions.items():
        meant = [m for m in members.values() if all(len(p) > len(at) or e["type"] not in _SHAPES for p, e in m)]
        if meant:
            groups += [[item] for item in min(meant, key=len)]
        else:
            groups.append([item for member in members.values() for item in member if len(item[0]) == len(at)])
    return groups


def _real_path(error: Mapping[str, Any], values: Any) -> tuple[Path, int | None, Any]:
    """The location without union tags, and the first tag with its place."""
    path: Path = ()
    tag_at, tag = None, None
    parts = error["loc"]
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if has(values, part):
            values = values[part]
        elif not (last and error["type"] in ("missing", "extra_forbidden")):
            if tag_at is None and part != "[key]":
                tag_at, tag = len(path), part
            continue
        path = (*path, part)
    return path, tag_at, tag


def _problem(
    group: Located,
    config: type[Config],
    values: Any,
    marks: Marks,
    path: Path,
    extra: tuple[str, ...],
) -> list[Problem]:
    at, error = group[0]
    kind, context = error["type"], error.get("ctx", {})
    full = (*path, *at)
    value = error["input"]
    if kind == "one_of_options":
        inside = _at(values, at)
        written = isinstance(inside, dict)
        options = inside[context["name"]] if written else {}
        below = (*full, context["name"]) if written else full
        return problems(context["errors"], context["config"], options, marks, below)
    if kind == "extra_forbidden":
        known = _known(config, values, at[:-1], extra)
        near = nearest(str(at[-1]), known)
        place = position(marks, full, of_key=True)
        return [Problem(place, full, f"unknown field '{at[-1]}'", at[-1], near, tuple(known))]
    if kind == "missing":
        described = _description(config, values, at)
        place = position(marks, full, of_key=True)
        return [Problem(place, full, f"is missing{': ' + described if described else ''}")]
    if kind == "one_of_name":
        near = nearest(context["name"], context["allowed"])
        of_key = isinstance(_at(values, at), dict)
        place = position(marks, (*full, context["name"]) if of_key else full, of_key=of_key)
        message = f"unknown {context['family']} {shown(context['name'])}"
        return [Problem(place, full, message, context["name"], near, tuple(context["allowed"]))]
    place = position(marks, full, of_key=not at)  # about a stage as a whole: its name
    if kind == "one_of_form":
        message = f"a {context['family']} is written as its name or as {{name: {{options}}}}, got {shown(value)}"
        return [Problem(place, full, message, value, None, tuple(context["allowed"]))]
    if kind in ("value_error", "assertion_error"):
        return [Problem(place, full, str(context.get("error", error["msg"])), value)]
    if kind not in _PHRASED and not error["msg"].startswith("Input should be "):  # a validator's own words
        allowed = tuple(context.get("allowed", ()))
        near = nearest(value, allowed) if isinstance(value, str) else None
        return [Problem(place, full, error["msg"], value, near, allowed)]
    wanted = dict.fromkeys(_wanted(e, config, values, p) for p, e in group)
    near, allowed = _literal(group, value)
    message = f"expected {' or '.join(wanted)}, got {shown(value)}"
    return [Problem(place, full, message, value, near or _converted(wanted, value), allowed)]


def _wanted(error: Mapping[str, Any], config: type[Config], values: Any, path: Path) -> str:
    kind, context = error["type"], error.get("ctx", {})
    noun = "integer" if _is_integer(config, values, path) else "number"
    if kind == "literal_error":
        return "one of the allowed values"
    if kind in ("greater_than", "greater_than_equal") and (
        context.get("gt") == 0 or (noun == "integer" and context.get("ge") == 1)
    ):
        return f"a positive {noun}"
    if kind in _BOUNDS:
        return f"{'an' if noun == 'integer' else 'a'} {noun} {_BOUNDS[kind]} {next(iter(context.values()))}"
    if kind == "string_too_short":
        return "text that is not empty"
    if kind == "too_short":
        return f"at least {context['min_length']} item{'s' if context['min_length'] > 1 else ''}"
    if kind == "too_long":
        return f"at most {context['max_length']} item{'s' if context['max_length'] > 1 else ''}"
    if kind == "multiple_of":
        return f"a multiple of {context['multiple_of']}"
    if kind == "string_pattern_mismatch":
        return f"text of the form {context['pattern']}"
    if kind in _WANTED:
        return _WANTED[kind]
    return error["msg"].removeprefix("Input should be ")


def _literal(group: Located, value: Any) -> tuple[str | None, tuple[str, ...]]:
    """For a field with a fixed set of values: the nearest, and all."""
    for _, error in group:
        if error["type"] == "literal_error":
            expected = error["ctx"]["expected"].replace(" or ", ", ")
            allowed = tuple(part.strip().strip("'") for part in expected.split(","))
            return (nearest(value, allowed) if isinstance(value, str) else None), allowed
    return None, ()


def _converted(wanted: Mapping[str, None], value: Any) -> str | None:
    """What was probably meant by a value of another type."""
    if "true or false" in wanted and isinstance(value, str):
        return _SWITCHES.get(value.lower())
    if isinstance(value, str) and any(w in wanted for w in ("an integer", "a number")):
        number = value.replace("_", "").replace(",", "")
        try:
            return number if str(float(number)) not in ("nan", "inf") else None
        except ValueError:
            return None
    if "an integer" in wanted and isinstance(value, float) and value.is_integer():
        return str(int(value))
    if "a list" in wanted and value is not None:
        return f"[{shown(value)}]" if not isinstance(value, str) else f"[{value}]"
    return None


def _is_integer(config: type[Config], values: Any, path: Path) -> bool:
    for site in sites(config, values):
        if site.path == path:
            return site.wanted is int
    return False


def _known(config: type[Config], values: Any, path: Path, extra: tuple[str, ...]) -> list[str]:
    found = config_at(config, values, path)
    return [*(extra if not path else ()), *(fields(found) if found else ())]


def _description(config: type[Config], values: Any, path: Path) -> str:
    """The first sentence of a field's documentation."""
    found = config_at(config, values, path[:-1])
    for name, field in found.model_fields.items() if found else ():
        if (field.alias or name) == path[-1] and field.description:
            return " ".join(field.description.split(". ")[0].split()).rstrip(".")
    return ""


def _at(values: Any, path: Path) -> Any:
    for part in path:
        values = values[part]
    return values
