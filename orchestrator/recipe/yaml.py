"""YAML 1.2 (core schema) with positions.

PyYAML reads YAML 1.1, where `no` is false, `010` is 8 and `1e-3` is text. Its parser is right, only its reading of
plain scalars is old: here its events are turned into values by the 1.2 rules, with the position of every key and
value kept. What has no place in a recipe is refused with one positioned error: duplicate keys, tags (a tag can name
a Python object), several documents, anchors that contain themselves or expand beyond `MAX_NODES`, other encodings
than UTF-8, files above `MAX_BYTES`.

Values are built from events and not by PyYAML's composer: its C version recurses without a limit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml

from orchestrator.recipe.errors import Path, Position, Problem, RecipeError, nearest, shown

MAX_BYTES = 1_000_000
MAX_NODES = 50_000
MAX_DEPTH = 64

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **{sign + word: float(sign + "inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


@dataclass(frozen=True)
class Mark:
    """Where a value stands, and where its key does (None for list items and the document itself)."""

    key: Position | None
    value: Position


Marks = dict[Path, Mark]


@dataclass(frozen=True)
class Document:
    """Plain Python values (dict, list, str, int, float, bool, None) and the marks of every path in them."""

    value: Any
    marks: Marks


def read(path: str | os.PathLike[str]) -> Document:
    """Read one YAML document from a file; RecipeError for all the reasons above, also if it cannot be read."""
    name = os.fspath(path)
    try:
        size = os.stat(name).st_size
        if size > MAX_BYTES:
            _refuse(Position(name), f"the file has {size:,} bytes; a recipe has at most {MAX_BYTES:,}")
        with open(name, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        folder = os.path.dirname(name) or "."
        others = [f for f in os.listdir(folder) if f.endswith((".yaml", ".yml"))] if os.path.isdir(folder) else []
        near = nearest(os.path.basename(name), others)
        _refuse(Position(name), "there is no such file", suggestion=near and os.path.join(os.path.dirname(name), near))
    except OSError as error:
        _refuse(Position(name), f"cannot be read: {error.strerror}")
    return parse(_decode(data, name), name)


def parse(text: str, name: str) -> Document:
    """Parse one document; `name` is what positions call it."""
    builder = _Builder(text, name)
    try:
        return builder.document()
    except yaml.MarkedYAMLError as error:
        _refuse_syntax(error, builder)
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n"), len(before) - (before.rfind("\n") + 1)
        _refuse(builder.position(line, column), "not valid YAML: a control character is not allowed here")


def scalar(text: str) -> Any:
    """A plain scalar by the core schema: null, bool, int, float, else text; ValueError for absurdly long numbers."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEX.fullmatch(text):
        return int(text[2:], 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def dump(value: Any) -> str:
    """Plain values as YAML text that reads back equal under 1.2 and, for PyYAML's other users, under 1.1."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=119)


class _Dumper(yaml.SafeDumper):
    """Quotes texts that either version of YAML would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    quoted = not isinstance(scalar(text), str)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if quoted else None)


_Dumper.add_representer(str, _represent_text)


class _Builder:
    """Turns parser events into values and marks."""

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self.lines = text.split("\n")
        self.events: Iterator[yaml.Event] = yaml.parse(text, Loader=_Loader)
        self.placed: list[tuple[Path, Mark]] = []  # in the order of the text, so an anchor's marks are a slice
        self.anchors: dict[str, tuple[Any, list[tuple[Path, Mark]]]] = {}
        self.open_anchors: set[str] = set()
        self.num_nodes = 0

    def document(self) -> Document:
        next(self.events)  # stream start
        event = next(self.events)
        if isinstance(event, yaml.StreamEndEvent):
            _refuse(Position(self.name), "the file is empty")
        value = self.node(next(self.events), (), None)
        next(self.events)  # document end
        event = next(self.events)
        if not isinstance(event, yaml.StreamEndEvent):
            _refuse(self.at(event), "a second document starts here; a recipe is one document")
        return Document(value, dict(self.placed))

    def node(self, event: yaml.Event, path: Path, key: Position | None) -> Any:
        position = self.at(event)
        self.placed.append((path, Mark(key, position)))
        self.count(position, 1)
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event.anchor, path, position)
        if event.tag is not None:
            _refuse(position, f"the tag {_short_tag(event.tag)} is not allowed; write plain values", path)
        if len(path) > MAX_DEPTH:
            _refuse(position, f"nested deeper than {MAX_DEPTH} levels")
        if event.anchor is None:
            return self.content(event, path, position)
        start = len(self.placed)
        self.open_anchors.add(event.anchor)
        value = self.content(event, path, position)
        self.open_anchors.discard(event.anchor)
        self.anchors[event.anchor] = (value, [(p[len(path) :], mark) for p, mark in self.placed[start:]])
        return value

    def content(self, event: yaml.Event, path: Path, position: Position) -> Any:
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
                items.append(self.node(event, (*path, len(items)), None))
            return items
        if isinstance(event, yaml.MappingStartEvent):
            return self.mapping(path)
        return self.text(event.value, event.implicit[0], path, position)

    def mapping(self, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        lines: dict[str, int | None] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            position = self.at(event)
            key = self.key(event, path, position)
            if key in values:
                _refuse(position, f"duplicate key '{key}'; it is already on line {lines[key]}", (*path, key))
            lines[key] = position.line
            values[key] = self.node(next(self.events), (*path, key), position)
        return values

    def key(self, event: yaml.Event, path: Path, position: Position) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            _refuse(position, "a key must be text", path)
        if event.tag is not None:
            _refuse(position, f"the tag {_short_tag(event.tag)} is not allowed; write plain values", path)
        if event.implicit[0]:
            if event.value == "<<":
                _refuse(position, "merge keys (<<) are not part of YAML 1.2; use `extends` or `vars`", path)
            value = self.text(event.value, True, path, position)
            if not isinstance(value, str):
                _refuse(position, f"a key must be text, got {shown(value)}", path, suggestion=f'"{event.value}"')
        return event.value

    def text(self, text: str, plain: bool, path: Path, position: Position) -> Any:
        try:
            return scalar(text) if plain else text
        except ValueError:
            _refuse(position, f"a number of {len(text):,} digits is too long", path)

    def alias(self, anchor: str, path: Path, position: Position) -> Any:
        if anchor in self.open_anchors:
            _refuse(position, f"the anchor &{anchor} contains itself", path)
        if anchor not in self.anchors:
            _refuse(
                position, f"there is no anchor &{anchor} before this", path, suggestion=nearest(anchor, self.anchors)
            )
        value, below = self.anchors[anchor]
        self.count(position, len(below))
        self.placed += [(path + relative, mark) for relative, mark in below]
        return _copy(value)

    def count(self, position: Position, num_nodes: int) -> None:
        self.num_nodes += num_nodes
        if self.num_nodes > MAX_NODES:
            _refuse(position, f"more than {MAX_NODES:,} values, anchors expanded; a recipe has far fewer")

    def at(self, event: yaml.Event) -> Position:
        return self.position(event.start_mark.line, event.start_mark.column)

    def position(self, line: int, column: int) -> Position:
        return Position(self.name, line + 1, column + 1, self.lines[line] if line < len(self.lines) else "")


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _decode(data: bytes, name: str) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:4096]:
        _refuse(Position(name, 1, 1), "the file is not UTF-8 (it looks like UTF-16 or binary); save it as UTF-8")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, len(before) - (before.rfind(b"\n") + 1) + 1
        _refuse(Position(name, line, column), f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8")


def _refuse_syntax(error: yaml.MarkedYAMLError, builder: _Builder) -> NoReturn:
    mark = error.problem_mark or error.context_mark
    first = error.context_mark.line if error.context_mark else mark.line
    for line in range(min(mark.line, len(builder.lines) - 1), first - 1, -1):
        text = builder.lines[line]
        indent = text[: len(text) - len(text.lstrip())]
        if "\t" in indent:
            _refuse(
                builder.position(line, indent.index("\t")), "a tab is used for indentation; YAML allows only spaces"
            )
    context = ""
    if error.context:
        context = f" ({error.context}" + (f" that starts on line {first + 1})" if first != mark.line else ")")
    _refuse(builder.position(mark.line, mark.column), f"not valid YAML: {error.problem}{context}")


def _short_tag(tag: str) -> str:
    return "!!" + tag.removeprefix("tag:yaml.org,2002:") if tag.startswith("tag:yaml.org,2002:") else tag


def _refuse(position: Position, message: str, path: Path = (), suggestion: str | None = None) -> NoReturn:
    raise RecipeError([Problem(position, path, message, suggestion=suggestion or None)])
