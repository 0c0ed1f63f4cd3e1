"""`pretrain`, `distill`, `finetune`: train a model by a method. A recipe writes the method's own options under
`method:`, everything that all trainings share (training/config.py) directly under the stage, and where the weights
come from under `init:`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import model_validator

from orchestrator.data import READ_RULE_VERSION, TRANSFORMS_VERSION
from orchestrator.methods import METHODS
from orchestrator.methods.config import MethodConfig
from orchestrator.models.config import Init, ModelSpec
from orchestrator.plan.types import Input, Node
from orchestrator.recipe.schema import Artifact, Dataset, Embeddings, Model, OneOf, Ref
from orchestrator.stages.base import ResourceConfig, StageConfig
from orchestrator.stages.embed.config import EmbedStage
from orchestrator.training import LOOP_VERSION
from orchestrator.training.config import TrainSettings

SMOKE_STEPS = 2
SMOKE_BATCH = 16
Teacher = Ref[Model, "encode_image", "encode_text", "score"]


class TrainStage(TrainSettings, StageConfig):
    """What the training kinds share: data, model, method, initial weights, and the loop's settings."""

    outputs: ClassVar[Mapping[str, type[Artifact]]] = {"default": Model}
    runner: ClassVar[str] = "orchestrator.stages.train.run:run"
    sources: ClassVar[tuple[str, ...]] = (
        "orchestrator.training",
        "orchestrator.methods",
        "orchestrator.models",
        "orchestrator.data",
        "orchestrator.stages.train",
    )

    data: Ref[Dataset]
    """Image-text pairs to train on; where they have a column `split`, those with `train` in it."""
    model: ModelSpec
    """Shape of the model: a name from the catalog, or an open_clip configuration."""
    method: Annotated[MethodConfig, OneOf(METHODS)]
    """Training method, as its name or with its options: `{tinyclip: {...}}`."""
    init: Init | None = None
    """Where the initial weights come from. Default: random, from `seed`."""

    @model_validator(mode="after")
    def _resolve_precision(self) -> Self:
        """`auto` becomes what it means here, so that it can be part of the stage's identity."""
        if self.precision == "auto":
            object.__setattr__(self, "precision", "bf16" if self.resources.gpus else "fp32")
            self.__pydantic_fields_set__.add("precision")
        return self

    @model_validator(mode="after")
    def _method_fits(self) -> Self:
        """A method that distils belongs to a stage with a teacher, any other to a stage without."""
        if self.method.teacher != ("teacher" in type(self).model_fields):
            name = METHODS.name_of(self.method)
            needed = self.method.teacher
            distils = "needs a teacher: write it in a `distill` stage" if needed else "has no use for a teacher"
            fitting = [other for other in METHODS if METHODS[other].teacher != needed]  # type: ignore[attr-defined]
            raise ValueError(f"method {name} {distils}; methods for this kind of stage: {', '.join(fitting)}")
        self.method.check(self.model)
        if self.validation is not None and not {"encode_image", "encode_text"} <= self.capabilities():
            name = METHODS.name_of(self.method)
            raise ValueError(
                f"validation compares images with texts, which a model of method {name} cannot; remove it"
            )
        return self

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        workers = self.resources.workers
        if self.batch % workers:
            raise ValueError(f"a batch of {self.batch} cannot be shared by {workers} workers")
        return self

    def capabilities(self) -> frozenset[str]:
        """What the method's result can do."""
        return self.method.capabilities(self.model)

    def versions(self) -> dict[str, int]:
        """The shared loop, what makes pixels and tokens, and the order of samples."""
        return {"loop": LOOP_VERSION, "transforms": TRANSFORMS_VERSION, "read": READ_RULE_VERSION}

    def smoke(self) -> Self:
        """Two steps of a small batch on a CPU-sized model of the same kind, by one CPU worker."""
        changes: dict[str, Any] = {
            "model": self.model.smoke(),
            "method": self.method.smoke(),
            "steps": SMOKE_STEPS,
            "samples": None,
            "epochs": None,
            "batch": min(self.batch, SMOKE_BATCH),
            "micro_batch": None,
            "warmup_steps": min(self.warmup_steps, 1),
            "precision": "fp32",
            "compile": False,
            "report_every": 1,
            "loader_processes": 0,
            "resources": ResourceConfig(),
        }
        return self.model_copy(update=changes)

    def work(self) -> float | None:
        """Samples to see; unknown before the data are, where the length is in epochs."""
        return None if self.epochs is not None else float(self.total_samples(0))


class Pretrain(TrainStage):
    """Trains a model on image-text pairs, from random weights or from another model's."""

    method: Annotated[MethodConfig, OneOf(METHODS)] = "clip"
    """Training method, as its name or with its options."""


class Distill(TrainStage):
    """Trains a model to behave as a larger, frozen teacher does."""

    teacher: Teacher
    """The model to learn from. In a progressive chain it stays the original one; weights come through `init`."""
    teacher_features: Ref[Embeddings] | None = None
    """The teacher's features, computed once by an `embed` stage; the student then sees the views stored there in turn,
    one an epoch, by their augmentation and captions. Default: the teacher runs beside the student."""
    method: Annotated[MethodConfig, OneOf(METHODS)] = "tinyclip"
    """Training method, as its name or with its options: `{tinyclip: {...}}`."""

    def disagreements(self, node: Node, nodes: Mapping[str, Node]) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Stored features are of this teacher and these samples, and decide what is done to images and captions."""
        inputs = {source.key: source for source in node.inputs}
        stored = inputs.get("teacher_features")
        made = nodes.get(stored.stage) if stored is not None and stored.stage is not None else None
        if made is None or not isinstance(made.config, EmbedStage):
            return
        made_of = {source.key: source for source in made.inputs}
        for mine, theirs in (("teacher", "model"), ("data", "data")):
            if _target(inputs[mine]) != _target(made_of[theirs]):
                message = f"'{made.name}' is made of the {theirs} {_name(made_of[theirs])}, but {mine} is here"
                yield ("teacher_features",), f"{message} {_name(inputs[mine])}; give both the same"
        if made.config.split != "train":
            yield ("teacher_features",), f"'{made.name}' has no features of the training samples; remove its `split`"
        if not made.config.views:
            message = f"'{made.name}' has the view of evaluation only (views: 0)"
            yield ("teacher_features",), f"{message}; give it `views: 4`, or as many as the training has epochs"
        if made.config.arrays(("encode_image", "encode_text")) != ("image", "text"):
            message = f"'{made.name}' has not the features of both images and texts"
            yield ("teacher_features",), f"{message}; remove its `of` and `output`"
        for name in ("augment", "captions"):
            if name in self.model_fields_set:
                yield (name,), f"is decided by the views stored in '{made.name}'; write it there and remove it here"


def _target(source: Input) -> tuple[str | None, str]:
    """What an input resolves to, as far as it is known."""
    return source.fingerprint or source.stage or source.external, source.output


def _name(source: Input) -> str:
    return f"'{source.stage or source.external}'"


class Finetune(TrainStage):
    """Goes on training a finished model, usually on other data."""

    init: Init
    """The model to start from."""
    method: Annotated[MethodConfig, OneOf(METHODS)] = "clip"
    """Training method, as its name or with its options."""
