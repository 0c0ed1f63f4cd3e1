"""Configuration of the `curate` stage: a Dataset, and the operators that go over it one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from orchestrator.curation import OPERATORS
from orchestrator.curation.operator import OperatorConfig
from orchestrator.plan.types import Resources
from orchestrator.recipe.schema import Artifact, Dataset, OneOf, Ref
from orchestrator.stages.base import StageConfig


class CurateStage(StageConfig):
    """Chooses samples by operators, in order, and notes what they find; copies no image. Splits stay as they are."""

    version: ClassVar[int] = 2
    outputs: ClassVar[Mapping[str, type[Artifact]]] = {"default": Dataset}
    runner: ClassVar[str] = "orchestrator.stages.curate.run:run"
    sources: ClassVar[tuple[str, ...]] = ("orchestrator.stages.curate", "orchestrator.curation", "orchestrator.data")
    unit: ClassVar[str] = "blocks"

    data: Ref[Dataset]
    """The Dataset to choose from."""
    split: str | None = None
    """Curate only samples with this value in the data's column `split` (`train`); all others stay as they are, so that
    held-out samples are the same before and after. Default: all samples, whatever their split."""
    steps: list[Annotated[OperatorConfig, OneOf(OPERATORS)]] = Field(min_length=1)
    """Operators in order, each a name or `{name: {options}}`."""

    def budget(self) -> Resources:
        return self.resources.spread()

    def asks_of(self, path: tuple[str | int, ...], can: frozenset[str]) -> frozenset[str]:
        """What the operator at a path wants of a model."""
        if path[0] != "steps":
            return frozenset()
        _, place, field, *_ = path
        return self.steps[int(place)].asks_of(str(field), can)

    def external_sources(self) -> list[str]:
        """Outside files that operators read."""
        return list(dict.fromkeys(file for step in self.steps for file in step.files()))
