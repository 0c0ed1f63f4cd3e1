"""What is wrong with a recipe, and where: `Problem`, and `RecipeError` that carries all of them at once.

A `Position` is a place in a file (or in an override on the command line, shown as `-s #1`) together with the line's
text, so that a problem can be shown with its source without reading anything again.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import UserError

Path = tuple[str | int, ...]
"""Where a value stands in a recipe: ("stages", "small", "steps")."""


@dataclass(frozen=True)
class Position:
    """A place: `line` and `column` count from 1 and are None for an override; `text` is the line there."""

    file: str
    line: int | None = None
    column: int | None = None
    text: str = ""

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: what, where, the nearest right spelling, and what is allowed."""

    position: Position
    path: Path
    message: str
    value: Any = None
    suggestion: str | None = None
    allowed: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        return self.position.file

    @property
    def line(self) -> int | None:
        return self.position.line

    @property
    def column(self) -> int | None:
        return self.position.column

    def render(self) -> str:
        """Position, path and message, then the source line with a caret, the suggestion and what is allowed."""
        where = f" {dotted(self.path)}:" if self.path else ""
        lines = [f"{self.position}{':' if not where else ''}{where} {self.message}"]
        lines += self._source()
        if self.suggestion:
            lines.append(f"  did you mean {self.suggestion}?")
        if self.allowed:
            shown = ", ".join(self.allowed[:40]) + (", …" if len(self.allowed) > 40 else "")
            lines.append(f"  allowed: {shown}")
        return "\n".join(lines)

    def _source(self) -> list[str]:
        """The line and a caret under the place, cut to a window of 100 characters around it."""
        text, column = self.position.text.rstrip(), self.position.column
        if not text.strip():
            return []
        if column is None:
            return [f"    {text[:100]}"]
        start = max(0, column - 80)
        window = text[start : start + 100].replace("\t", " ")
        return [f"    {window}", "    " + " " * (column - 1 - start) + "^"]


class RecipeError(UserError):
    """A recipe is wrong. `problems` holds everything found, in the order of the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        head = [] if len(self.problems) == 1 else [f"{len(self.problems)} problems in the recipe"]
        super().__init__("\n".join([*head, *(problem.render() for problem in self.problems)]))


def raise_problems(problems: Iterable[Problem]) -> None:
    """Raise a RecipeError with all distinct problems, sorted by place; nothing if there are none."""
    distinct: dict[tuple, Problem] = {}
    for problem in problems:  # arms of a matrix repeat what is wrong with their common part
        distinct.setdefault((str(problem.position), problem.message), problem)
    if distinct:
        raise RecipeError(sorted(distinct.values(), key=_order))


def _order(problem: Problem) -> tuple:
    """Files by line, then overrides by number."""
    if problem.line is None:
        return (1, len(problem.file), problem.file)
    return (0, problem.file, problem.line, problem.column)


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The closest right spelling of `word`, or None if nothing is close."""
    lowered = {choice.lower(): choice for choice in reversed(list(choices))}
    close = difflib.get_close_matches(str(word).lower(), lowered, n=1, cutoff=0.6)
    return lowered[close[0]] if close else None


def dotted(path: Path) -> str:
    """A path as people write it: `stages.small.steps`."""
    return ".".join(str(part) for part in path)


def shown(value: Any) -> str:
    """A value as it is written in a recipe, cut to 60 characters."""
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif value is None:
        text = "nothing"
    elif isinstance(value, str):
        text = f"'{value}'"
    elif isinstance(value, dict):
        text = "{" + ", ".join(f"{k}: {shown(v)}" for k, v in list(value.items())[:8]) + "}"
    elif isinstance(value, list):
        text = "[" + ", ".join(shown(v) for v in value[:8]) + "]"
    else:
        text = str(value)
    return text if len(text) <= 60 else text[:59] + "…"
