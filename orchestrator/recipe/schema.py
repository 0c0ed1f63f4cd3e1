"""The words configurations are written in: `Config`, `Execution`, `Ref`, `Table`, `OneOf`.

A configuration is a frozen pydantic model whose every field has a type, a docstring under it, and a default only
where a sane one exists. The class that uses a setting owns it; error messages, reference pages and the JSON Schema
all come from it.

The line that matters is between *identity* and *execution*. Every field is identity (it enters the stage's
fingerprint) unless its type is written `Execution[...]`: forgetting is safe, opting out is visible.

A `Ref[Model]` names another stage's output or an external artifact. References are found by walking configuration
values at any depth, so edges, their types and needed capabilities are known before anything runs. A `Table` maps
names to configuration classes by import string; a field `Annotated[Base, OneOf(table)]` is written `name` or `{name:
{options}}`.

Nothing here knows a stage kind, and nothing here imports torch or Ray.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import PydanticCustomError, core_schema

T = TypeVar("T")


class Config(BaseModel):
    """Base of every configuration: frozen, strict, no unknown fields, field docs from the strings under them."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        validate_default=True,
    )

    version: ClassVar[int] = 1
    """Raised by a person when the same settings give other results."""

    def versions(self) -> dict[str, int]:
        """Versions of shared code that this configuration's results depend on, by name (the training loop, say)."""
        return {}


class ExecutionOnly:
    """Marks a field that cannot change results: resources, storage, logging. It stays out of fingerprints."""


Execution = Annotated[T, ExecutionOnly()]


# Artifact types: what a reference can point to. The classes are names only; what is inside is each layer's business.
class Artifact:
    """One of the five kinds of output."""


class Dataset(Artifact):
    """Image-text pairs: immutable shards, an index, column groups and a selection."""


class Model(Artifact):
    """Structure, weights, preprocessing and tokenizer of a trained model."""


class Embeddings(Artifact):
    """Features or codes of (model, dataset, view), keyed by (uid, view, slot)."""


class Study(Artifact):
    """A sweep's trials."""


class Report(Artifact):
    """Metrics, tables and pictures."""


ARTIFACTS: dict[str, type[Artifact]] = {c.__name__: c for c in (Dataset, Model, Embeddings, Study, Report)}


class Reference(str):
    """A reference as written: `teacher`, `search.study`, `arms[seed=1]`, or external: `open_clip:ViT-B-32/openai`.

    Class attributes say what it must resolve to. Do not instantiate this class; write `Ref[Model]` in a field.
    """

    artifact: ClassVar[type[Artifact]] = Artifact
    needs: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(
            cls, core_schema.str_schema(min_length=1), serialization=core_schema.to_string_ser_schema()
        )


if TYPE_CHECKING:  # a reference is spelt like an annotated type
    from typing import Annotated as Ref
else:

    class Ref:
        """`Ref[Model]`, or with capabilities the target must have: `Ref[Model, "encode_image", "encode_text"]`."""

        _cache: ClassVar[dict[tuple, type[Reference]]] = {}

        def __class_getitem__(cls, item: Any) -> Any:
            artifact, *needs = item if isinstance(item, tuple) else (item,)
            key = (artifact, frozenset(needs))
            if key not in cls._cache:
                attributes = {"artifact": artifact, "needs": frozenset(needs)}
                cls._cache[key] = type(f"Ref[{artifact.__name__}]", (Reference,), attributes)
            return cls._cache[key]


class Table(Mapping[str, type[Config]]):
    """A family of configurations by name, imported only when asked for.

    Args:
        family: what a member is called in messages, for instance "method".
        entries: name -> "module:Class" of the configuration.
    """

    def __init__(self, family: str, entries: Mapping[str, str]) -> None:
        self.family = family
        self._entries = dict(entries)
        self._loaded: dict[str, type[Config]] = {}

    def __getitem__(self, name: str) -> type[Config]:
        if name not in self._loaded:
            module, _, attribute = self._entries[name].partition(":")
            self._loaded[name] = getattr(importlib.import_module(module), attribute)
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def name_of(self, config: Config) -> str:
        """The name under which a configuration's class is listed; KeyError if it is not."""
        target = f"{type(config).__module__}:{type(config).__qualname__}"
        for name, entry in self._entries.items():
            if entry == target:
                return name
        raise KeyError(target)


class OneOf:
    """Field type `Annotated[Base, OneOf(table)]`, written in a recipe as `name` or as `{name: {options}}`."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def _validate(self, value: Any) -> Config:
        if isinstance(value, Config):
            return value
        options: Any
        if isinstance(value, str):
            name, options = value, {}
        elif isinstance(value, dict) and len(value) == 1:
            name, options = next(iter(value.items()))
            options = {} if options is None else options
        else:
            raise PydanticCustomError(
                "one_of_form",
                "a {family} is written as its name or as {{name: {{options}}}}",
                {"family": self.table.family, "allowed": list(self.table)},
            )
        if name not in self.table:
            raise PydanticCustomError(
                "one_of_name",
                "unknown {family} '{name}'",
                {"family": self.table.family, "name": name, "allowed": list(self.table)},
            )
        try:
            return self.table[name].model_validate(options)
        except ValidationError as error:  # carried whole: the recipe layer gives each its own position
            raise PydanticCustomError(
                "one_of_options",
                "wrong options of {family} '{name}'",
                {"family": self.table.family, "name": name, "config": self.table[name], "errors": error.errors()},
            ) from None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda c: {self.table.name_of(c): c.model_dump(mode="json")}
            ),
        )

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        names, bodies = [], []
        for name in self.table:
            body = handler(self.table[name].__pydantic_core_schema__)  # lands in the shared $defs
            names.append({"const": name, "description": (self.table[name].__doc__ or "").strip()})
            bodies.append(
                {"type": "object", "properties": {name: body}, "required": [name], "additionalProperties": False}
            )
        return {"anyOf": [*names, *bodies]}


def walk(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every value inside a configuration, depth first, with its path as written in the recipe.

    The members of a `OneOf` table appear under their configuration's field; lists and mappings are entered.
    """
    yield path, value
    if isinstance(value, Config):
        for name, field in type(value).model_fields.items():
            yield from walk(getattr(value, name), (*path, field.alias or name))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from walk(item, (*path, key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from walk(item, (*path, number))


def replaced(value: Any, path: Sequence[str | int], new: Any) -> Any:
    """A copy of a configuration with another value at a path that `walk` gave. Nothing is validated again."""
    if not path:
        return new
    head, *rest = path
    if isinstance(value, Config):
        name = next(n for n, field in type(value).model_fields.items() if (field.alias or n) == head)
        return value.model_copy(update={name: replaced(getattr(value, name), rest, new)})
    if isinstance(value, Mapping):
        return {**value, head: replaced(value[head], rest, new)}
    return [replaced(item, rest, new) if number == head else item for number, item in enumerate(value)]


def references(config: Config) -> list[tuple[tuple[str | int, ...], Reference]]:
    """All references inside a configuration, at any depth, with their paths."""
    return [(path, value) for path, value in walk(config) if isinstance(value, Reference)]
