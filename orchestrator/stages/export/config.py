"""Configuration of the `export` stage: which Dataset, in which formats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from orchestrator.plan.types import Resources
from orchestrator.recipe.schema import Artifact, Dataset, Ref, Report
from orchestrator.stages.base import StageConfig


class ExportStage(StageConfig):
    """Writes a Dataset for other tools: `webdataset` (shards, a Parquet sidecar each, sizes.json), `datacomp` (the
    sorted uid file of its resharder), `parquet` (one table of all that is known). `orch fetch` copies them out."""

    outputs: ClassVar[Mapping[str, type[Artifact]]] = {"default": Report}
    runner: ClassVar[str] = "orchestrator.stages.export.run:run"
    sources: ClassVar[tuple[str, ...]] = ("orchestrator.stages.export", "orchestrator.data")
    unit: ClassVar[str] = "shards"

    data: Ref[Dataset]
    """The Dataset to export."""
    formats: list[Literal["webdataset", "datacomp", "parquet"]] = Field(min_length=1)
    """What to write."""
    uids: Literal["own", "source"] = "own"
    """Ids in the `datacomp` file: those given here, or those that the samples' json came with (`source_uid`)."""
    shard_samples: Annotated[int, Field(ge=1)] = 10_000
    """Samples of a shard (img2dataset's and DataComp's number)."""

    def budget(self) -> Resources:
        return self.resources.spread()
