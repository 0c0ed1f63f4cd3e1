"""`embed`: what a frozen model makes of the views of a data set, so that no later stage runs the model again.

The stage fixes the views: it draws augmentations and captions from its own seed and keeps that seed with the features
(MobileCLIP's reinforced data sets do the same with the augmentations' parameters). A training that reads them shows
its model exactly these views: in epoch e of its data, view e modulo `views`. `views: 0` is the view of evaluation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from orchestrator.data import TRANSFORMS_VERSION
from orchestrator.data.bad import FEW, MaxBad
from orchestrator.data.captions import CaptionPolicy
from orchestrator.data.transforms import Augment
from orchestrator.recipe.schema import Artifact, Dataset, Embeddings, Execution, Model, Ref
from orchestrator.stages.base import ResourceConfig, StageConfig

Side = Literal["image", "text"]
NEEDS = {"image": "encode_image", "text": "encode_text", "codes": "codes"}
"""Array of Embeddings -> what a model must be able to do to fill it."""
SMOKE_VIEWS = 1


class EmbedStage(StageConfig):
    """Computes a model's features of images and captions, or codes of images, once, for the stages that need them."""

    outputs: ClassVar[Mapping[str, type[Artifact]]] = {"default": Embeddings}
    runner: ClassVar[str] = "orchestrator.stages.embed.run:run"
    sources: ClassVar[tuple[str, ...]] = ("orchestrator.data", "orchestrator.models", "orchestrator.stages.embed")

    model: Ref[Model]
    """The model: a distillation's teacher, a sentence encoder, an image backbone, a captioner."""
    data: Ref[Dataset]
    """The data whose images and captions are encoded."""
    of: Annotated[list[Side], Field(min_length=1, max_length=2)] | None = None
    """What is encoded of a sample: `[image]`, `[text]`, or both. Default: what the model can encode."""
    output: Literal["features", "codes"] = "features"
    """`features` of images and texts, or `codes`: the codebook entries by which a captioner describes an image."""
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
    block: Execution[Annotated[int, Field(ge=1)]] = 1024
    """Images, or texts, that are handed to a worker and kept at once: what a crash can cost each worker, and a stop
    waits for. Blocks of another size begin anew."""

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

    @model_validator(mode="after")
    def _of_what(self) -> Self:
        if self.of is not None and len(set(self.of)) < len(self.of):
            raise ValueError("of: names a side twice")
        if self.output == "codes" and self.of not in (None, ["image"]):
            raise ValueError("output: codes is of images; remove `of`")
        return self

    def arrays(self, can: Collection[str]) -> tuple[str, ...]:
        """What is stored, in order, if the model can do these things: `image` and `text`, one of them, or `codes`."""
        if self.output == "codes":
            return ("codes",)
        possible = [side for side in ("image", "text") if NEEDS[side] in can] or ["image", "text"]
        return tuple(side for side in ("image", "text") if side in (self.of or possible))

    def asks_of(self, path: tuple[str | int, ...], can: frozenset[str]) -> frozenset[str]:
        """What fills the arrays that are wanted."""
        return frozenset(NEEDS[array] for array in self.arrays(can)) if path == ("model",) else frozenset()

    def versions(self) -> dict[str, int]:
        """Pixels and tokens come from data/."""
        return {"transforms": TRANSFORMS_VERSION}

    def smoke(self) -> Self:
        """One view of each sample, on one CPU."""
        changes = {"views": min(self.views, SMOKE_VIEWS), "precision": "fp32", "resources": ResourceConfig()}
        return self.model_copy(update=changes)
