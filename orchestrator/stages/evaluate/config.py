"""`evaluate`: models judged together on one data set, so that they can be compared in pairs (tasks: evaluation/)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from orchestrator.data import TRANSFORMS_VERSION
from orchestrator.data.bad import FEW, MaxBad
from orchestrator.evaluation import TASKS
from orchestrator.evaluation.config import TaskConfig
from orchestrator.recipe.schema import Artifact, Dataset, Execution, Model, OneOf, Ref, Report
from orchestrator.stages.base import StageConfig

Judged = Ref[Model, "encode_image", "encode_text", "score"]


class EvaluateStage(StageConfig):
    """Evaluates models on a data set. Every model answers the same questions, and is compared with every other in
    pairs."""

    outputs: ClassVar[Mapping[str, type[Artifact]]] = {"default": Report}
    runner: ClassVar[str] = "orchestrator.stages.evaluate.run:run"
    sources: ClassVar[tuple[str, ...]] = ("orchestrator.evaluation", "orchestrator.stages.evaluate")

    models: list[Judged] = Field(min_length=1)
    """The models, in the order of the final table; ratios are taken against the first one too."""
    data: Ref[Dataset]
    """Data with the splits to evaluate, usually before curation."""
    tasks: list[Annotated[TaskConfig, OneOf(TASKS)]] = Field(min_length=1)
    """What to evaluate, each task once."""
    bootstrap: int = Field(default=1000, ge=1)
    """Bootstrap resamples behind every 95% interval."""
    seed: int = Field(default=0, ge=0)
    """Of the bootstrap, and of the captions in the picture."""
    max_bad: Execution[MaxBad] = FEW
    """How many samples may have images that cannot be decoded: a count, or a share of the data set's samples. They are
    left out of all questions, the same ones for every model."""
    batch: Execution[Annotated[int, Field(ge=1)]] = 256
    """Images, or texts, encoded at once."""

    @field_validator("tasks")
    @classmethod
    def _once(cls, tasks: list[TaskConfig]) -> list[TaskConfig]:
        if len({type(task) for task in tasks}) < len(tasks):
            raise ValueError("a task is named twice; give an `evaluate` stage of its own to the second")
        return tasks

    def versions(self) -> dict[str, int]:
        """Pixels and tokens come from data/."""
        return {"transforms": TRANSFORMS_VERSION}

    def smoke(self) -> EvaluateStage:
        """At most 32 samples a split, and few resamples."""
        tasks = [task.model_copy(update={"max_samples": 32}) for task in self.tasks]
        return self.model_copy(update={"tasks": tasks, "bootstrap": 20})
