"""`embed`: what a frozen model makes of the views of a data set, so that no later stage runs the model again.

The stage fixes the views: it draws augmentations and captions from its own seed and keeps that seed with the features
(MobileCLIP's reinforced data sets do the same with the augmentations' parameters). A training that reads them shows
its model exactly these views: in epoch e of its data, view e modulo `views`. `views: 0` is the view of evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from orchestrator.data import TRANSFORMS_VERSION
from orchestrator.data.bad import FEW, MaxBad
from orchestrator.data.captions import CaptionPolicy
from orchestrator.data.transforms import Augment
from orchestrator.recipe.schema import Artifact, Dataset, Embeddings, Execution, Model, Ref
from orchestrator.stages.base import ResourceConfig, StageConfig

Encoder = Ref[Model, "encode_image", "encode_text"]
SMOKE_VIEWS = 1


class EmbedStage(StageConfig):
    """Computes a model's features of images and captions once, for the stages that need them."""

    outputs: ClassVar[Mapping[str, type[Artifact]]] = {"default": Embeddings}
    runner: ClassVar[str] = "orchestrator.stages.embed.run:run"
    sources: ClassVar[tuple[str, ...]] = ("orchestrator.data", "orchestrator.models", "orchestrator.stages.embed")

    model: Encoder
    """The model, a distillation's teacher for instance."""
    data: Ref[Dataset]
    """The data whose images and captions are encoded."""
    split: str | None = "train"
    """Samples with this value in the data's column `split`, where they have one. `null`: all."""
    views: Annotated[int, Field(ge=0)] = 4
    """Views of each sample: an augmentation and a caption each. 0: the view of evaluation, centre crop and first
    caption."""
    augment: Augment = Augment()
    """What is done to images; a training that reads these embeddings takes it over."""
    captions: CaptionPolicy = CaptionPolicy()
    """Which caption a view shows; a training that reads these embeddings takes it over."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides augmentations and captions."""
    dtype: Literal["fp16", "fp32"] = "fp16"
    """What features are stored in. fp16 moves a cosine by about 0.00002, and a teacher's softmax rows by a
    divergence of less than 0.000001."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the encoders. `auto`: bf16 with a GPU, else fp32."""

    max_bad: Execution[MaxBad] = FEW
    """How many samples may have images that cannot be decoded: a count, or a share of the data set's samples. Their
    image features are 0; a training does not see these samples."""
    batch: Execution[Annotated[int, Field(ge=1)]] = 256
    """Images, or texts, encoded at once."""
    checkpoint_every: Execution[Annotated[int, Field(ge=1)]] = 64
    """Batches between two checkpoints: the most work that a crash can cost."""

    @model_validator(mode="after")
    def _resolve_precision(self) -> Self:
        """`auto` becomes what it means here, so that it can be part of the stage's identity."""
        if self.precision == "auto":
            object.__setattr__(self, "precision", "bf16" if self.resources.gpus else "fp32")
            self.__pydantic_fields_set__.add("precision")
        return self

    @model_validator(mode="after")
    def _augmented(self) -> Self:
        if not self.views and self.augment != Augment():
            raise ValueError("views: 0 is the view of evaluation, which is not augmented; remove `augment`")
        return self

    def versions(self) -> dict[str, int]:
        """Pixels and tokens come from data/."""
        return {"transforms": TRANSFORMS_VERSION}

    def smoke(self) -> Self:
        """One view of each sample, on one CPU."""
        changes = {"views": min(self.views, SMOKE_VIEWS), "precision": "fp32", "resources": ResourceConfig()}
        return self.model_copy(update=changes)
