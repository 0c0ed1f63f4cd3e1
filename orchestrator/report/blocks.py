"""What a page is made of: a section function says what to show with these, the template says how it looks.

Every text in them is plain and is escaped by the template; only `Plot.svg` and `Graph.rails`, which we draw ourselves,
are markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup


@dataclass(frozen=True)
class Cell:
    """A table's cell: its text, a smaller line beneath, and a bar behind it (a share, 0 to 1)."""

    text: str
    beneath: str = ""
    bar: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows under column heads, the first column naming the row; the other `numbers` are set to the right."""

    block: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    title: str = ""
    note: str = ""
    numbers: bool = True


@dataclass(frozen=True)
class Plot:
    """A drawing; `legend` has (number of the series, its name)."""

    title: str
    svg: Markup
    legend: Sequence[tuple[int, str]] = ()
    note: str = ""


@dataclass(frozen=True)
class Plots:
    """Drawings side by side where there is room."""

    block: ClassVar[str] = "plots"
    plots: Sequence[Plot]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Thumb:
    """A small picture as a data URI ("" where it could not be read), what is written under it, and a tag."""

    uri: str
    caption: str = ""
    tag: str = ""
    right: bool = False


@dataclass(frozen=True)
class Gallery:
    """Samples as people see them."""

    block: ClassVar[str] = "gallery"
    thumbs: Sequence[Thumb]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Answers:
    """What each model found for some captions: (caption's own picture and text, by model its name and pictures)."""

    block: ClassVar[str] = "answers"
    questions: Sequence[tuple[Thumb, Sequence[tuple[str, Sequence[Thumb]]]]]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Image:
    """A large picture, scrolled sideways where it is wider than the page."""

    block: ClassVar[str] = "image"
    uri: str
    title: str = ""


@dataclass(frozen=True)
class Facts:
    """Names and what they are."""

    block: ClassVar[str] = "facts"
    pairs: Sequence[tuple[str, str]]
    title: str = ""


@dataclass(frozen=True)
class Text:
    """A sentence or two; a `warning` stands out."""

    block: ClassVar[str] = "text"
    text: str
    warning: bool = False


@dataclass(frozen=True)
class Code:
    """Text as it is: a log, a recipe, a difference (`diff` colours its lines)."""

    block: ClassVar[str] = "code"
    text: str
    title: str = ""
    diff: bool = False


@dataclass(frozen=True)
class Fold:
    """Blocks behind a line that opens them."""

    block: ClassVar[str] = "fold"
    title: str
    blocks: Sequence[Block]
    beside: str = ""


Block = Table | Plots | Gallery | Answers | Image | Facts | Text | Code | Fold
