"""The schema's snapshot: every field of every configuration with its type and default, and every class's version.

A default is part of what a fingerprint leaves unsaid, so a changed default is a silent change of identity: two
different results under one fingerprint. The committed snapshot turns it into a failing test until the class's
version is raised.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.plan.fingerprint import encoded_default, is_execution, same
from orchestrator.recipe.annotations import alternatives, fields, is_config, strip
from orchestrator.recipe.schema import Config, Table

Snapshot = dict[str, dict[str, Any]]


def snapshot(kinds: Table) -> Snapshot:
    """By class ("method tinyclip", "Init"): version, and fields with type, default and execution mark."""
    found: Snapshot = {}
    for name in kinds:
        _add(f"{kinds.family} {name}", kinds[name], found)
    return dict(sorted(found.items()))


def unversioned(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What must not change without a version: defaults of identity fields, in classes whose version stayed."""
    broken = []
    for name in sorted(old.keys() & new.keys()):
        if old[name]["version"] != new[name]["version"]:
            continue
        before, after = old[name]["fields"], new[name]["fields"]
        for field in sorted(before.keys() & after.keys()):
            a, b = before[field], after[field]
            identity = not (a["execution"] and b["execution"])
            if identity and "default" in a and not same(a["default"], b.get("default", ...)):
                broken.append(f"{name}: default of {field} {a['default']} → {b.get('default', 'none')}")
    return broken


def _add(name: str, config: type[Config], found: Snapshot) -> None:
    if name in found:
        return
    entry: dict[str, Any] = {"version": config.version, "fields": {}}
    found[name] = entry
    types = fields(config)
    for field_name, field in config.model_fields.items():
        written = field.alias or field_name
        facts: dict[str, Any] = {"type": _spelt(types[written]), "execution": is_execution(field)}
        default = encoded_default(config, field_name)
        if default is not ...:
            facts["default"] = default
        entry["fields"][written] = facts
        for below, inner in () if is_execution(field) else _classes(types[written]):
            _add(below, inner, found)


def _classes(annotation: Any) -> Iterator[tuple[str, type[Config]]]:
    """All configuration classes that a type lets in, with the names they have in the snapshot."""
    for wanted, table in alternatives(annotation):
        if table is not None:
            yield from ((f"{table.family} {name}", table[name]) for name in table)
        elif is_config(wanted):
            yield wanted.__name__, wanted
        else:
            for argument in typing.get_args(wanted):
                yield from _classes(argument)


def _spelt(annotation: Any) -> str:
    """A type in words that do not depend on Python's version."""
    words = []
    for wanted, table in alternatives(annotation):
        origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
        if table is not None:
            words.append(f"one {table.family}")
        elif origin is typing.Literal:
            words.append("|".join(repr(argument) for argument in arguments))
        elif origin is not None:
            words.append(f"{origin.__name__}[{', '.join(_spelt(argument) for argument in arguments)}]")
        else:
            words.append(getattr(wanted, "__name__", str(wanted)))
    optional = type(None) in typing.get_args(strip(annotation)[0])
    return " or ".join([*words, *(["null"] if optional else [])])
