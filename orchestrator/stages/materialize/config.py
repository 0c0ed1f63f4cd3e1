"""Configuration of the `materialize` stage: which Dataset, and how its shards are cut and ordered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from orchestrator.plan.types import Resources
from orchestrator.recipe.schema import Artifact, Dataset, Ref
from orchestrator.stages.base import StageConfig


class MaterializeStage(StageConfig):
    """Writes the selected samples, and what is known of them, into new shards inside the store. Worth it where a small
    selection of large shards is read often; samples keep their ids."""

    outputs: ClassVar[Mapping[str, type[Artifact]]] = {"default": Dataset}
    runner: ClassVar[str] = "orchestrator.stages.materialize.run:run"
    sources: ClassVar[tuple[str, ...]] = ("orchestrator.stages.materialize", "orchestrator.data")
    unit: ClassVar[str] = "shards"

    data: Ref[Dataset]
    """The Dataset whose selection is written."""
    shard_samples: Annotated[int, Field(ge=1)] = 4096
    """Samples of a shard. One is made in memory at a time, by each worker."""
    shuffle: bool = False
    """Mix the samples over the shards, by a permutation of `seed`; otherwise they stay in the order they are in."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides the order where `shuffle` is set."""

    def budget(self) -> Resources:
        return self.resources.spread()
