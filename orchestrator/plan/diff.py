"""What changed between two payloads, in words: "learning_rate 0.001 → 0.0005", "upstream clean"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.plan.fingerprint import encoded_default, same
from orchestrator.recipe.annotations import alternatives, fields, is_config, item_type, table_of
from orchestrator.recipe.errors import Path, dotted
from orchestrator.recipe.schema import Config


def diff(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    config: type[Config],
    old_names: Mapping[str, str] | None = None,
    new_names: Mapping[str, str] | None = None,
) -> list[str]:
    """Differences of two payloads of one stage kind, each a short sentence; empty if they are equal.

    Args:
        old: the payload of an artifact that is there.
        new: the payload that is wanted.
        config: the kind's configuration class, for defaults where one side leaves a field out.
        old_names: by reference path (`teacher`, `models.0`), the name of the stage it meant then.
        new_names: the same now.
    """
    walker = _Diff(old_names or {}, new_names or {})
    walker.fields(old.get("config", {}), new.get("config", {}), config, (), ())
    upstream = [f"upstream {name}" for name in dict.fromkeys(walker.upstream)]
    return [*walker.changes, *upstream, *_versions(old, new, walker.same_parts), *_rest(old, new)]


def _versions(old: Mapping[str, Any], new: Mapping[str, Any], same_parts: bool) -> list[str]:
    found = []
    if old.get("version") != new.get("version"):
        found.append(f"version of {new.get('kind')} {old.get('version')} → {new.get('version')}")
    before, after = old.get("versions", {}), new.get("versions", {})
    for name in sorted({*before, *after} if same_parts else before.keys() & after.keys()):
        if before.get(name, 1) != after.get(name, 1):
            found.append(f"version of {name} {before.get(name, 1)} → {after.get(name, 1)}")
    return found


def _rest(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    found = []
    if old.get("external") != new.get("external"):
        found.append("content of the external data")
    if old.get("rerun") != new.get("rerun"):
        found.append("a re-run was asked for" if new.get("rerun") else "the last one was a re-run that was asked for")
    return found


class _Diff:
    """Walks two encodings and the type they have in common. Paths: as shown (with `OneOf` names), and by key."""

    def __init__(self, old_names: Mapping[str, str], new_names: Mapping[str, str]) -> None:
        self.old_names = old_names
        self.new_names = new_names
        self.changes: list[str] = []
        self.upstream: list[str] = []
        self.same_parts = True  # no method or operator was exchanged, so a version that is new was raised

    def fields(self, old: Any, new: Any, config: type[Config], path: Path, key: Path) -> None:
        known = {field.alias or name: name for name, field in config.model_fields.items()}
        types = fields(config)
        for written in dict.fromkeys([*(k for k in known if k in old or k in new), *old, *new]):
            filled = encoded_default(config, known[written]) if written in known else ...
            a, b = old.get(written, filled), new.get(written, filled)
            defaults = (written not in old and filled is not ..., written not in new and filled is not ...)
            self.value(a, b, types.get(written, Any), (*path, written), (*key, written), defaults)

    def value(self, a: Any, b: Any, annotation: Any, path: Path, key: Path, defaults: tuple[bool, bool]) -> None:
        if same(a, b):
            return
        table = table_of(annotation)
        if is_target(a) and is_target(b):
            self.target(key, path)
        elif table is not None and _choice(a) and _choice(a) == _choice(b):
            name = str(_choice(a))
            self.fields(a[name], b[name], table[name], (*path, name), key)
        elif table is None and isinstance(a, dict) and isinstance(b, dict):
            self.mappings(a, b, annotation, path, key)
        elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b) and any(map(_deep, [*a, *b])):
            for number, (x, y) in enumerate(zip(a, b, strict=True)):
                below = item_type(annotation)
                self.value(x, y, below, (*path, number), (*key, number), (False, False))
        else:
            self.same_parts &= table is None and not _chooses(annotation)
            before, after = (short(x) + (" (default)" if d else "") for x, d in zip((a, b), defaults, strict=True))
            self.changes.append(f"{dotted(path)} {before} → {after}")

    def mappings(self, a: dict[str, Any], b: dict[str, Any], annotation: Any, path: Path, key: Path) -> None:
        classes = [wanted for wanted, _ in alternatives(annotation) if is_config(wanted)]
        if len(classes) == 1:
            self.fields(a, b, classes[0], path, key)
            return
        for name in dict.fromkeys([*a, *b]):
            x, y = a.get(name, ...), b.get(name, ...)
            self.value(x, y, item_type(annotation), (*path, name), (*key, name), (False, False))

    def target(self, key: Path, path: Path) -> None:
        before, after = self.old_names.get(dotted(key)), self.new_names.get(dotted(key), dotted(path))
        if before is None or before == after:
            self.upstream.append(after)
        else:
            self.changes.append(f"{dotted(path)} {before} → {after}")


def is_target(value: Any) -> bool:
    """Whether an encoded value is a resolved reference."""
    return isinstance(value, dict) and "artifact" in value and ("fingerprint" in value or "external" in value)


def short(value: Any) -> str:
    """An encoded value in at most 40 characters, as a recipe would write it."""
    if value is ...:
        text = "not given"
    elif value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif is_target(value):
        text = f"a {value['artifact']}"
    elif _choice(value) and not value[_choice(value)]:
        text = str(_choice(value))
    elif isinstance(value, dict):
        text = "{" + ", ".join(f"{k}: {short(v)}" for k, v in value.items()) + "}"
    elif isinstance(value, list):
        text = "[" + ", ".join(short(v) for v in value) + "]"
    else:
        text = str(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _choice(value: Any) -> str | None:
    """The name in an encoded `OneOf` value."""
    if isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value.values())), dict):
        return next(iter(value))
    return None


def _chooses(annotation: Any) -> bool:
    return table_of(item_type(annotation)) is not None


def _deep(value: Any) -> bool:
    return isinstance(value, dict)
