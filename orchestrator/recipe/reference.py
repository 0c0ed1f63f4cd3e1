"""The fields of a configuration as a person reads them: what `orch show pretrain` prints."""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from orchestrator.recipe.annotations import fields, strip
from orchestrator.recipe.schema import Config, ExecutionOnly, Reference


@dataclass(frozen=True)
class FieldPage:
    """One field: its name as written (dotted inside settings of settings), type, default, text, and whether it is
    execution-only.
    """

    name: str
    type: str
    default: str
    text: str
    execution: bool


def describe(config: type[Config], prefix: str = "", within: bool = False) -> list[FieldPage]:
    """All fields of a configuration; settings that are configurations themselves are entered.

    `prefix` and `within` are for what is entered: where it stands, and whether all of it is execution-only.
    """
    pages = []
    annotations = fields(config)
    for name, field in config.model_fields.items():
        written = field.alias or name
        bare, table = strip(annotations[written])
        execution = within or any(isinstance(item, ExecutionOnly) for item in field.metadata)
        if table is None and isinstance(bare, type) and issubclass(bare, Config) and not hasattr(bare, "smoke"):
            pages += describe(bare, f"{prefix}{written}.", execution)
            continue
        kind = f"one of the {table.family}s: {', '.join(table)}" if table is not None else spelled(bare)
        text = " ".join((field.description or "").split())
        pages.append(FieldPage(prefix + written, kind, _default(field.default), text, execution))
    return pages


def spelled(annotation: Any) -> str:
    """A type in the words of a recipe: `whole number`, `list of text`, `a Model`."""
    bare, table = strip(annotation)
    if table is not None:
        return f"{table.family}"
    origin, inside = get_origin(bare), get_args(bare)
    if origin is Literal:
        return " | ".join(str(value) for value in inside)
    if origin in (Union, types.UnionType):
        return " | ".join("none" if member is type(None) else spelled(member) for member in inside)
    if origin is list:
        return f"list of {spelled(inside[0])}"
    if origin is dict:
        return f"mapping to {spelled(inside[1])}"
    if isinstance(bare, type) and issubclass(bare, Reference):
        return f"a {bare.artifact.__name__}"
    words = {int: "whole number", float: "number", str: "text", bool: "true | false", type(None): "none"}
    return words.get(bare, getattr(bare, "__name__", str(bare)))


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "(required)"
    if isinstance(value, Config):
        return "{}"
    return "none" if value is None else str(value)
