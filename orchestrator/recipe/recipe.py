"""What loading gives: `Recipe`, with a `StageSpec` for every stage after `matrix` is expanded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from orchestrator.recipe.compose import position
from orchestrator.recipe.errors import Path, Position
from orchestrator.recipe.schema import Config
from orchestrator.recipe.yaml import Marks

STAGE_FIELDS = ("kind", "matrix")
"""Fields that every stage has beside those of its kind."""


class RecipeFile(Config):
    """A recipe: named stages, each of a kind; references between them make the graph."""

    name: str = Field(default="", pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$|^$")
    """What runs of this recipe are called. Default: the file's name."""
    description: str = ""
    """What it shows, in a sentence or more."""
    extends: str | None = None
    """Another recipe, by a path relative to this file, on which this one is laid: mappings merge, others replace."""
    vars: dict[str, Any] = {}
    """Values used in several places as `${vars.NAME}`."""
    stages: dict[str, dict[str, Any]] = Field(min_length=1)
    """The stages by name. Each has a `kind`, the fields of that kind, and optionally `matrix`: fields with lists of
    values, whose product multiplies the stage into `name[field=value,…]`."""


@dataclass(frozen=True)
class StageSpec:
    """One stage.

    Attributes:
        name: as written, or `arms[seed=0]` for an arm of a matrix.
        kind: its stage kind.
        type: the kind's configuration class.
        config: the validated configuration (None only while `load` collects the problems of a recipe that is refused).
        values: the plain values it was made from.
        marks: positions, by paths that begin with ("stages", written name).
        path: ("stages", written name).
        picks: for an arm, its values by field, as they stand in its name.
    """

    name: str
    kind: str
    type: type[Config]
    config: Any
    values: Mapping[str, Any]
    marks: Marks = field(repr=False)
    path: Path
    picks: Mapping[str, str] = field(default_factory=dict)

    def position(self, path: Path = (), of_key: bool = False) -> Position:
        """Where a path inside the stage, as written, stands."""
        return position(self.marks, (*self.path, *path), of_key)

    @property
    def mark(self) -> Position:
        """Where the stage begins."""
        return self.position(of_key=True)


@dataclass(frozen=True)
class Recipe:
    """A recipe that is right: every field checked, every reference found.

    Attributes:
        name: what runs are called.
        path: the file.
        description: as written.
        stages: by name, in the order of the file, arms of a matrix in the place of their stage.
        groups: names of a matrix stage's arms, by the written name.
        values: the resolved recipe as plain values (extended, overridden, variables filled in), loadable again.
    """

    name: str
    path: str
    description: str
    stages: Mapping[str, StageSpec]
    groups: Mapping[str, tuple[str, ...]]
    values: Mapping[str, Any]
