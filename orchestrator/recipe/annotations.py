"""What a recipe's plain values mean before they are validated: each value beside the type of its field.

Merging (is this `method: {clip: …}` a choice to replace or a mapping to merge?), references in a list that a matrix
expands, and the list of right spellings for an unknown key all need the type at a path while the values may still be
wrong. `sites` walks values and types together. A site has two paths: `path` as written in the recipe, `key` as in
the validated configuration, which leaves out the names of `OneOf` members (schema.walk).
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from orchestrator.recipe.errors import Path
from orchestrator.recipe.schema import Config, OneOf, Reference, Table


@dataclass(frozen=True)
class Site:
    """One value, the type wanted there (`Annotated` and `None` taken off), and the table if it is a `OneOf`."""

    path: Path
    key: Path
    wanted: Any
    table: Table | None
    value: Any


def sites(config: type[Config], values: Any, path: Path = (), key: Path = ()) -> Iterator[Site]:
    """Every value inside the plain `values` of a configuration, depth first; unknown fields are passed over."""
    if not isinstance(values, Mapping):
        return
    for name, annotation in fields(config).items():
        if name in values:
            yield from _typed(annotation, values[name], (*path, name), (*key, name))


def fields(config: type[Config]) -> dict[str, Any]:
    """Field names as written (aliases), each with its type, metadata kept as `Annotated`."""
    return {field.alias or name: _annotation(field) for name, field in config.model_fields.items()}


def config_at(config: type[Config], values: Any, path: Path) -> type[Config] | None:
    """The configuration class whose fields stand at a written path, or None."""
    if not path:
        return config
    for site in sites(config, values):
        if site.path == path:
            return _config_of(site)
        if site.table is not None and isinstance(site.value, Mapping) and site.path == path[:-1]:
            return site.table.get(str(path[-1]))
    return None


def _annotation(field: FieldInfo) -> Any:
    return typing.Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def strip(annotation: Any) -> tuple[Any, Table | None]:
    """The type without `Annotated` and the `OneOf` table among its metadata."""
    table = None
    while get_origin(annotation) is typing.Annotated:
        annotation, *metadata = get_args(annotation)
        table = next((item.table for item in metadata if isinstance(item, OneOf)), table)
    return annotation, table


def alternatives(annotation: Any) -> list[tuple[Any, Table | None]]:
    """The members of a union, each stripped, without None; a single one for any other type."""
    bare, table = strip(annotation)
    if table is None and get_origin(bare) in (Union, types.UnionType):
        return [found for member in get_args(bare) if member is not type(None) for found in alternatives(member)]
    return [(bare, table)]


def table_of(annotation: Any) -> Table | None:
    """The table of a `OneOf` type, also inside `| None`."""
    return next((table for _, table in alternatives(annotation) if table is not None), None)


def item_type(annotation: Any) -> Any:
    """The type of a list's items or a mapping's values."""
    for bare, _ in alternatives(annotation):
        if get_args(bare):
            return get_args(bare)[-1]
    return Any


def is_config(wanted: Any) -> bool:
    """Whether a type is a configuration class."""
    return isinstance(wanted, type) and issubclass(wanted, Config)


def _config_of(site: Site) -> type[Config] | None:
    return site.wanted if site.table is None and is_config(site.wanted) else None


def _typed(annotation: Any, value: Any, path: Path, key: Path) -> Iterator[Site]:
    members = alternatives(annotation)
    wanted, table = next((member for member in members if _fits(*member, value)), members[0])
    yield Site(path, key, wanted, table, value)
    if table is not None:
        if isinstance(value, Mapping) and len(value) == 1:
            name, options = next(iter(value.items()))
            if name in table:
                yield from sites(table[name], options, (*path, name), key)
    elif is_config(wanted):
        yield from sites(wanted, value, path, key)
    elif get_origin(wanted) is list and isinstance(value, list):
        for number, item in enumerate(value):
            yield from _typed(get_args(wanted)[0], item, (*path, number), (*key, number))
    elif get_origin(wanted) in (dict, Mapping) and isinstance(value, Mapping):
        for name, item in value.items():
            yield from _typed(get_args(wanted)[1], item, (*path, name), (*key, name))


def _fits(wanted: Any, table: Table | None, value: Any) -> bool:
    """Whether a union's member is the one meant by a plain value, judged by its shape."""
    origin = get_origin(wanted) or wanted
    if table is not None:
        return isinstance(value, str) or (
            isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in table
        )
    if origin is Literal:
        return value in get_args(wanted)
    if isinstance(value, Mapping):
        return is_config(wanted) or origin in (dict, Mapping)
    if isinstance(value, list):
        return origin is list
    if isinstance(value, str):
        return origin is str or (isinstance(wanted, type) and issubclass(wanted, Reference))
    return type(value) is origin or (origin is float and type(value) is int)
