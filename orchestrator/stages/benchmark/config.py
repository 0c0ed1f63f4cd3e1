"""Configuration of the `benchmark` stage: models, and the folder of evaluation sets they are scored on.

Neither the folder nor what is done about missing sets is identity: the content of the sets that are there is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from orchestrator.data import TRANSFORMS_VERSION
from orchestrator.data.benchmark import SCHEME
from orchestrator.errors import OrchError
from orchestrator.evaluation.datacomp import TASKS, Task, named
from orchestrator.io.storage import Storage
from orchestrator.plan.types import Node
from orchestrator.recipe.errors import nearest
from orchestrator.recipe.schema import Artifact, Execution, Model, Ref, Report
from orchestrator.stages.base import ResourceConfig, StageConfig

Judged = Ref[Model, "encode_image", "encode_text", "score"]
SMOKE_SAMPLES = 32
LISTED = 5
"""Missing sets that a message names."""


class BenchmarkStage(StageConfig):
    """Scores models on standard evaluation sets that lie in a folder; nothing is downloaded. Every model answers the
    same questions."""

    outputs: ClassVar[Mapping[str, type[Artifact]]] = {"default": Report}
    runner: ClassVar[str] = "orchestrator.stages.benchmark.run:run"
    sources: ClassVar[tuple[str, ...]] = ("orchestrator.evaluation", "orchestrator.stages.benchmark")

    models: list[Judged] = Field(min_length=1)
    """The models, in the order of the final table."""
    path: Execution[Annotated[str, Field(min_length=1)]]
    """Folder of evaluation sets as DataComp and CLIP_benchmark lay them out, on disk or S3:
    `<path>/wds_cifar10_test/test/0.tar`."""
    tasks: Literal["datacomp38"] | Annotated[list[str], Field(min_length=1)] = "datacomp38"
    """DataComp's 38 tasks, or a list of some of them (`vtab/pets`) and of other sets by the name of their folder."""
    split: str = "test"
    """The sets' split, a folder in each."""
    missing: Execution[Literal["refuse", "skip"]] = "refuse"
    """What to do if sets are not in the folder: refuse before anything runs, or leave them out. An average of
    DataComp's is given only where all of its tasks are there."""
    max_samples: int | None = Field(default=None, ge=1)
    """Look at no more than the first samples of each set: for trying out, the figures are not the benchmark's."""
    bootstrap: int = Field(default=1000, ge=1)
    """Bootstrap resamples behind every 95% interval."""
    seed: int = Field(default=0, ge=0)
    """Of the bootstrap."""
    batch: Execution[Annotated[int, Field(ge=1)]] = 256
    """Images, or texts, encoded at once."""

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: str) -> str:
        """A path means the same on every worker: relative ones are taken from where the recipe is loaded."""
        return path.rstrip("/") if "://" in path else os.path.abspath(os.path.expanduser(path))

    @field_validator("tasks")
    @classmethod
    def _once(cls, tasks: str | list[str]) -> str | list[str]:
        if not isinstance(tasks, str) and len({named(name) for name in tasks}) < len(tasks):
            raise ValueError("a task is named twice")
        return tasks

    @property
    def wanted(self) -> tuple[Task, ...]:
        """The tasks asked for."""
        return TASKS if isinstance(self.tasks, str) else tuple(named(name) for name in self.tasks)

    def candidates(self, task: Task) -> list[str]:
        """Sources that a task may be, the first that is there counts."""
        return [f"{SCHEME}{self.path}/{folder}/{self.split}" for folder in task.folders]

    def _found(self) -> tuple[list[str], list[Task]]:
        """Sources of the tasks that are there, and the tasks that are not: all, where `path` does not exist."""
        there = set(Storage.open(self.path).children(""))
        found, missing = list[str](), list[Task]()
        for task in self.wanted:
            own = [source for source, folder in zip(self.candidates(task), task.folders) if folder in there]
            found += own[:1]
            missing += [] if own else [task]
        return found, missing

    def external_sources(self) -> list[str]:
        """The sets that are there; where none is, the first as if it were, which is refused when it is to be read."""
        return self._found()[0] or [source for task in self.wanted[:1] for source in self.candidates(task)[:1]]

    def disagreements(self, node: Node, nodes: Mapping[str, Node]) -> Iterable[tuple[tuple[str | int, ...], str]]:
        """Some sets are there and others are not. (Where none is, the recipe can be planned: its data may come.)"""
        found, missing = self._found()
        if found and missing and self.missing == "refuse":
            names = ", ".join(task.folders[0] for task in missing[:LISTED])
            more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
            near = [nearest(task.key, [task.key for task in TASKS]) for task in missing if task.size is None]
            hint = f" (did you mean {near[0]}?)" if near and near[0] else ""
            yield (
                ("path",),
                f"{len(missing)} of {len(self.wanted)} evaluation sets are not in '{self.path}': {names}{more}{hint}; "
                "docs/evaluation.md says where to get them, and `missing: skip` leaves them out",
            )

    def versions(self) -> dict[str, int]:
        """Pixels and tokens come from data/."""
        return {"transforms": TRANSFORMS_VERSION}

    def smoke(self) -> BenchmarkStage:
        """A few samples of the sets that are there, if any are, on a CPU."""
        try:
            found, _ = self._found()
        except OrchError:
            found = []
        changes = {
            "missing": "skip",
            "max_samples": SMOKE_SAMPLES,
            "bootstrap": 20,
            "resources": ResourceConfig(),
        }
        return self.model_copy(update=changes if found else {**changes, "tasks": []})
