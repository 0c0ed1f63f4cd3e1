"""What a stage is, in 64 characters: SHA-256 over a canonical encoding of all that decides its result.

    {"kind": "distill", "version": 1,
     "config": {"steps": 120, "method": {"tinyclip": {"temperature": 20.0}},
                "teacher": {"artifact": "Model", "output": "model", "fingerprint": "9f2c…"}},
     "versions": {"training loop": 2}, "external": ["4be1…"]}

Fields at their defaults are left out, and so are versions that are 1: a new field with a default, or a part that
begins to declare a version, changes nothing. Execution-only fields are left out at any depth. A reference is what it
resolves to, never a name. The choice of a `OneOf` field is encoded as in a recipe. What cannot be encoded faithfully
is refused.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from orchestrator.plan.types import Input
from orchestrator.recipe.annotations import alternatives, fields, item_type, table_of
from orchestrator.recipe.errors import Path, dotted
from orchestrator.recipe.schema import Config, ExecutionOnly, Reference, walk


def payload(
    kind: str, config: Config, inputs: Sequence[Input], external: Sequence[str] = (), rerun: str | None = None
) -> dict[str, Any]:
    """The JSON value that a fingerprint hashes.

    Args:
        kind: the stage kind.
        config: its configuration.
        inputs: all its references, resolved, with fingerprints.
        external: digests of the external data it reads.
        rerun: a nonce that makes a re-run another result.

    Raises:
        ValueError: a value has no faithful encoding; the message has its path.
    """
    targets = {reference.path: _target(reference) for reference in inputs}
    result: dict[str, Any] = {
        "kind": kind,
        "version": type(config).version,
        "config": _fields(config, (), targets),
        "versions": {name: version for name, version in sorted(_versions(config)) if version != 1},
    }
    if external:
        result["external"] = list(external)
    if rerun is not None:
        result["rerun"] = rerun
    return result


def fingerprint(payload: Mapping[str, Any]) -> str:
    """SHA-256 of a payload in hex. Independent of the order of keys."""
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def is_execution(field: FieldInfo) -> bool:
    """Whether a field is execution-only."""
    return any(isinstance(item, ExecutionOnly) for item in field.metadata)


@functools.cache
def default(config: type[Config], name: str) -> Any:
    """A field's default as validation makes it (`1` is 1.0, a method's name its configuration); ... if required."""
    field = config.model_fields[name]
    if field.is_required():
        return ...
    annotation: Any = fields(config)[field.alias or name]
    return TypeAdapter(annotation).validate_python(field.get_default(call_default_factory=True))


def encoded_default(config: type[Config], name: str) -> Any:
    """A field's default as it would stand in a payload; ... if required."""
    value = default(config, name)
    written = config.model_fields[name].alias or name
    return ... if value is ... else encode(value, fields(config)[written], (name,), None)


def encode(value: Any, annotation: Any, path: Path, targets: Mapping[Path, Any] | None) -> Any:
    """One value as JSON; ValueError if it has no faithful encoding.

    Args:
        value: what a configuration holds.
        annotation: its declared type, which says how classes of configurations are told apart.
        path: where it stands, for messages and for `targets`.
        targets: what references resolve to, by path; None for defaults, whose references stay as written.
    """
    if value is None or type(value) in (bool, int):
        return value
    if isinstance(value, Reference):
        return {"reference": str(value)} if targets is None else targets[path]
    if isinstance(value, str):
        return str.__str__(value)
    if type(value) is float:
        if not math.isfinite(value):
            raise ValueError(f"{dotted(path)}: {value} is not a finite number and has no place in a fingerprint")
        return value + 0.0  # -0.0 is 0.0
    if isinstance(value, Config):
        return _config(value, annotation, path, targets)
    if isinstance(value, Mapping):
        return {_key(k, path): encode(v, item_type(annotation), (*path, k), targets) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [encode(v, item_type(annotation), (*path, n), targets) for n, v in enumerate(value)]
    raise ValueError(f"{dotted(path)}: a {type(value).__name__} cannot be encoded faithfully in a fingerprint")


def _config(value: Config, annotation: Any, path: Path, targets: Mapping[Path, Any] | None) -> dict[str, Any]:
    inside = _fields(value, path, targets)
    table = table_of(annotation)
    if table is not None:
        return {table.name_of(value): inside}
    if [member for member, _ in alternatives(annotation)] == [type(value)]:
        return inside
    return {"class": type(value).__name__, "fields": inside}  # of several classes, which one


def _fields(config: Config, path: Path, targets: Mapping[Path, Any] | None) -> dict[str, Any]:
    """Identity fields that differ from their defaults, and all that hold references."""
    result = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if is_execution(field) or (name not in config.model_fields_set and not _has_reference(value)):
            continue
        written = field.alias or name
        encoded = encode(value, fields(type(config))[written], (*path, written), targets)
        if not same(encoded, encoded_default(type(config), name)):
            result[written] = encoded
    return result


def _has_reference(value: Any) -> bool:
    return any(isinstance(inner, Reference) for _, inner in walk(value))


def same(a: Any, b: Any) -> bool:
    """Whether two encoded values are equal and of equal types all the way down (True is not 1)."""
    return a is not ... and b is not ... and json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def _key(key: Any, path: Path) -> str:
    if type(key) is not str:
        raise ValueError(f"{dotted(path)}: the key {key!r} is not text")
    return key


def _target(reference: Input) -> dict[str, Any]:
    if reference.fingerprint is None:
        raise ValueError(f"{reference.key}: the fingerprint of its target is not known")
    if reference.stage is None:
        return {"artifact": reference.artifact, "external": reference.fingerprint}
    return {"artifact": reference.artifact, "output": reference.output, "fingerprint": reference.fingerprint}


def _versions(config: Config, name: str | None = None) -> Iterator[tuple[str, int]]:
    """(what, version) of everything inside a stage's configuration that declares one; the stage's own stands apart."""
    if name is not None:
        yield name, type(config).version
    yield from config.versions().items()
    for field_name, field in type(config).model_fields.items():
        if not is_execution(field):
            yield from _versions_in(getattr(config, field_name), fields(type(config))[field.alias or field_name])


def _versions_in(value: Any, annotation: Any) -> Iterator[tuple[str, int]]:
    if isinstance(value, Config):
        table = table_of(annotation)
        name = f"{table.family} {table.name_of(value)}" if table is not None else type(value).__name__
        yield from _versions(value, name)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _versions_in(item, item_type(annotation))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _versions_in(item, item_type(annotation))
