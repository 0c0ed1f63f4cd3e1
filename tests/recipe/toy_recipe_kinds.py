"""A small table of stage kinds with every form a field can take; the real kinds have their own tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from orchestrator.recipe.schema import Artifact, Config, Dataset, Execution, Model, OneOf, Ref, Report, Study, Table
from orchestrator.stages.base import StageConfig

IMAGE, TEXT = "encode_image", "encode_text"


class Plain(Config):
    """Contrastive loss alone."""


class Mimic(Config):
    """Learns from a teacher's affinities."""

    version: ClassVar[int] = 2
    temperature: float = Field(default=50.0, gt=0)
    """Temperature of the affinities."""
    weight: float = Field(default=0.5, ge=0, le=1)
    """Share of the mimicking loss."""

    def versions(self) -> dict[str, int]:
        return {"affinities": 3}


class ClipScore(Config):
    """Keep pairs that a model finds alike."""

    model: Ref[Model, IMAGE, TEXT]
    """The model that judges."""
    threshold: float = 0.2
    """Smallest score kept."""


class Dedup(Config):
    """Drop repeated pairs."""

    by: Literal["image", "pair"] = "pair"
    """What is compared."""


class Init(Config):
    """Where weights come from."""

    from_: Ref[Model] = Field(alias="from")
    """The model whose weights are taken."""
    keep: float | None = None
    """Share of it that is kept."""


METHODS = Table("method", {"plain": f"{__name__}:Plain", "mimic": f"{__name__}:Mimic"})
OPERATORS = Table("operator", {"clip_score": f"{__name__}:ClipScore", "dedup": f"{__name__}:Dedup"})


class Data(StageConfig):
    """Pairs from shards."""

    outputs: ClassVar[Mapping[str, type[Artifact]]] = {"data": Dataset}
    source: Execution[str]
    """Where the shards are; their content is the identity."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many pairs."""
    language: str = "en"
    """Language of the captions."""

    def external_sources(self) -> list[str]:
        return [self.source]


class Curate(StageConfig):
    """A smaller, cleaner data set."""

    outputs: ClassVar[Mapping[str, type[Artifact]]] = {"data": Dataset}
    data: Ref[Dataset]
    """The data set to clean."""
    steps: list[Annotated[Config, OneOf(OPERATORS)]] = []
    """Operators, in order."""


class Train(StageConfig):
    """A model from data."""

    outputs: ClassVar[Mapping[str, type[Artifact]]] = {"model": Model, "study": Study}
    data: Ref[Dataset]
    """What it learns from."""
    method: Annotated[Config, OneOf(METHODS)] = "plain"
    """How it learns."""
    teacher: Ref[Model] | None = None
    """Model to learn from."""
    init: Init | None = None
    """Weights to begin with."""
    steps: int = Field(default=100, ge=1)
    """Optimiser steps."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    shuffle: bool = True
    """Whether the order is random."""
    betas: list[float] = [0.9, 0.98]
    """Decay rates."""
    size: int | Literal["small", "large"] = "small"
    """Width, or a name."""
    space: dict[str, float] = {}
    """Numbers by name."""
    seed: int = 0
    """Decides everything random."""
    blind: bool = False
    """Train the text side alone."""
    log_every: Execution[int] = 10
    """Steps between reports."""

    def capabilities(self) -> frozenset[str]:
        return frozenset({"encode_text"} if self.blind else {"encode_image", "encode_text"})

    def work(self) -> float | None:
        return float(self.steps)


class Evaluate(StageConfig):
    """Figures about models."""

    outputs: ClassVar[Mapping[str, type[Artifact]]] = {"report": Report}
    models: list[Ref[Model, IMAGE]]
    """The models to judge."""
    data: Ref[Dataset]
    """What they are judged on."""


KINDS = Table(
    "stage kind",
    {
        "data": f"{__name__}:Data",
        "curate": f"{__name__}:Curate",
        "train": f"{__name__}:Train",
        "evaluate": f"{__name__}:Evaluate",
    },
)
