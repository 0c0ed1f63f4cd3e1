"""JSON Schema of recipes, for completion and hover texts in editors.

It helps while typing and is more lenient than `load`: fields may come from an extended recipe or a matrix, so none
is required, and a value may be a `${vars.NAME}`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from orchestrator.recipe.recipe import RecipeFile
from orchestrator.recipe.schema import Config

_VARIABLE = {"type": "string", "pattern": r"\$\{vars\.[^}]+\}"}
_MATRIX = {
    "type": "object",
    "description": "Fields with lists of values; their product multiplies the stage into name[field=value,…].",
    "additionalProperties": {"type": "array", "minItems": 1},
}


def schema(kinds: Mapping[str, type[Config]]) -> dict[str, Any]:
    """The schema of a recipe whose stages are of the given kinds."""
    models = {name: kinds[name] for name in kinds}
    refs, shared = models_json_schema([(model, "validation") for model in models.values()])
    definitions = shared.get("$defs", {})
    for definition in definitions.values():
        _allow_variables(definition)
    conditions = []
    for name, model in models.items():
        key = refs[(model, "validation")]["$ref"].removeprefix("#/$defs/")
        definition = definitions[key]
        definition.pop("required", None)
        definition["properties"] |= {"kind": {"const": name}, "matrix": _MATRIX}
        condition = {"properties": {"kind": {"const": name}}, "required": ["kind"]}
        conditions.append({"if": condition, "then": {"$ref": f"#/$defs/{key}"}})
    top = RecipeFile.model_json_schema()
    top["properties"]["stages"]["additionalProperties"] = {"$ref": "#/$defs/stage"}
    definitions["stage"] = {
        "type": "object",
        "properties": {"kind": {"enum": list(models), "description": "What kind of stage this is."}},
        "allOf": conditions,
    }
    top.pop("required", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **top, "title": "recipe", "$defs": definitions}


def write(path: str | os.PathLike[str], kinds: Mapping[str, type[Config]]) -> None:
    """Write the schema as a JSON file."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(schema(kinds), file, indent=1, ensure_ascii=False)
        file.write("\n")


def _allow_variables(node: Any) -> None:
    """Let every value of a field or a list that is not free text be written as a variable, in place."""
    if isinstance(node, list):
        for item in node:
            _allow_variables(item)
    elif isinstance(node, dict):
        for key, item in node.items():
            if key not in ("default", "const", "enum"):
                _allow_variables(item)
        for value in [*node.get("properties", {}).values(), node.get("items")]:
            if isinstance(value, dict):
                _or_variable(value)


def _or_variable(value: dict[str, Any]) -> None:
    if value.get("type") == "string" and "enum" not in value:
        return
    if "anyOf" in value:
        value["anyOf"].append(_VARIABLE)
        return
    taken = {key: value.pop(key) for key in list(value) if key not in ("description", "default", "title")}
    value["anyOf"] = [taken, _VARIABLE]
