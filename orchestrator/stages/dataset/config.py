"""Configuration of the `dataset` stage: which data, how they are split, whether they are copied.

`source`, `index` and `import` are no identity: the data's content digest is, which the plan puts in their place. So
the same shards on disk and on S3 are the same stage.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from orchestrator.data import INDEX_VERSION
from orchestrator.data.bad import FEW, MaxBad
from orchestrator.data.location import spelled
from orchestrator.recipe.schema import Artifact, Config, Dataset, Execution
from orchestrator.stages.base import StageConfig

Share = Annotated[float, Field(ge=0, lt=1)]


class SplitConfig(Config):
    """Which samples are held out of training. Concepts and styles come from the samples' json."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Decides which concepts and cells are held out."""
    ood_style: str | None = "fluent-emoji-flat"
    """Drawing style that is never trained on (`ood`); null for none. Data without concepts and styles ignore it."""
    unseen: Share = 0.1
    """Share of the concepts that is never trained on, in any style (`unseen`)."""
    held: Share = 0.6
    """Share of the other concepts with two or more training styles that keeps one of these out of training (`id`)."""
    holdout: Share = 0.0
    """For data without concepts and styles: share of the samples that is kept out of training (`id`)."""


class DatasetStage(StageConfig):
    """Brings outside data in: indexed, identified by content, split for evaluation."""

    outputs: ClassVar[Mapping[str, type[Artifact]]] = {"default": Dataset}
    runner: ClassVar[str] = "orchestrator.stages.dataset.run:run"
    sources: ClassVar[tuple[str, ...]] = ("orchestrator.stages.dataset", "orchestrator.data")

    source: Execution[Annotated[str, Field(min_length=1)]]
    """A built-in set (`emoji`), a folder of WebDataset tar shards, or a pattern of them:
    `s3://bucket/cc12m/{00000..01242}.tar`."""
    index: Execution[Literal["content", "headers"]] = "content"
    """By what the data are known: all their bytes; or, for pools too large to read twice, `headers`: captions and json
    are read, and of each image its name and size alone. That is another identity, which the content digest states, and
    it cannot tell equal images; sizes in pixels are known where the json states them."""
    split: SplitConfig = SplitConfig()
    """Which samples are held out of training."""
    max_bad: Execution[MaxBad] = FEW
    """How many samples may be unusable (no caption, no image, a damaged shard): a count, or a share of all. Each is
    counted with its reason and left out; one more, and the stage fails."""
    import_: Execution[Literal["auto", "copy", "reference"]] = Field(default="auto", alias="import")
    """Copy the shards into the store, or refer to where they are. `auto` copies what workers elsewhere could not read:
    built-in sets and local paths, when the store is remote. The submitting machine copies what is on its own disk."""

    @field_validator("source")
    @classmethod
    def _absolute(cls, source: str) -> str:
        """A path means the same on every worker: relative ones are taken from where the recipe is loaded."""
        is_path = "/" in source or source.endswith(".tar") or Path(source).is_dir()
        if "://" in source or not is_path or _is_builtin(source):
            return source
        return os.path.abspath(os.path.expanduser(source))

    def external_sources(self) -> list[str]:
        return [spelled(self.source, self.index)]

    def copies(self, shared: bool, store_on_disk: bool) -> bool:
        """The rule of `import`: a store elsewhere means workers elsewhere, which do not see this disk."""
        return self.import_ == "copy" or (self.import_ == "auto" and not shared and not store_on_disk)

    def versions(self) -> dict[str, int]:
        return {"index": INDEX_VERSION}

    def smoke(self) -> DatasetStage:
        """The same data; the sample set where they cannot be reached."""
        from orchestrator.data.location import locate
        from orchestrator.errors import OrchError

        try:
            locate(self.source)
        except OrchError:
            return self.model_copy(update={"source": "emoji"})
        return self


def _is_builtin(source: str) -> bool:
    from orchestrator.data.sets import SETS

    return source in SETS
