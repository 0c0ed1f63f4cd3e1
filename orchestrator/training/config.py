"""The settings every training has, whatever its method: length, batch, optimiser, schedule, precision, policies.

The three training stage kinds inherit them, so recipes write `learning_rate:` directly under the stage. Position is
counted in samples; `steps` and `epochs` are turned into samples once, when the training starts. Intervals are written
in steps because people think in them; a step is always `batch` samples, however many ranks share it. No torch here:
recipes are checked without it.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from orchestrator.data.bad import FEW, MaxBad
from orchestrator.data.captions import CaptionPolicy
from orchestrator.data.transforms import Augment
from orchestrator.recipe.schema import Config, Execution

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class Ema(Config):
    """An exponential moving average of the weights, kept beside the training."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """Share of the average that a step keeps."""
    warmup: bool = True
    """Let the average forget its random beginning: a step n keeps at most (1 + n) / (10 + n)."""


class Validation(Config):
    """Looking at held-out samples while training: contrastive loss, and zero-shot accuracy where the data name
    concepts.
    """

    every_samples: Count
    """Samples between two validations, rounded up to whole batches; the end of the training is always one."""
    split: str = "id"
    """Held-out samples: those with this value in the data's column `split`."""
    limit: Count | None = 2048
    """Largest number of held-out samples looked at, always the same ones. `null`: all."""
    batch: Count = 128
    """Samples that are each other's negatives in the validation loss."""


class Select(Config):
    """What makes one moment of the training better than another."""

    metric: Literal["val/loss", "val/zeroshot.top1", "val/zeroshot.top5"] = "val/loss"
    """A validation figure; zero-shot classification needs data that name a concept for each sample."""
    mode: Literal["min", "max"] = "min"
    """Whether small or large is good."""


class Locked(Config):
    """Towers that keep the weights they start from (LiT: a locked image tower)."""

    image: bool = False
    """Keep the image tower as it is."""
    image_unlocked: Annotated[int, Field(ge=0)] = 0
    """Last groups of the locked image tower that are trained all the same: 1: projection, 2: the last block, too."""
    text: bool = False
    """Keep the text tower as it is."""
    text_unlocked: Annotated[int, Field(ge=0)] = 0
    """Last groups of the locked text tower that are trained all the same, counted in the same way."""


class Exponential(Config):
    """A learning rate that is multiplied after every epoch (BLIP)."""

    factor: Annotated[float, Field(gt=0, le=1)] = 0.9
    """What it is multiplied by."""
    every_epochs: Positive = 1.0
    """Passes over the data between two multiplications, counted from the start of the training."""
    floor: NotNegative = 1e-6
    """Least learning rate after the warm-up."""
    warmup_from: NotNegative = 1e-6
    """Learning rate of the first step, from which it rises to the peak in `warmup_steps`."""


class TrainSettings(Config):
    """Length, batch, optimiser, schedule, precision and policies of a training."""

    steps: Count | None = None
    """Length in optimiser steps. Exactly one of `steps`, `samples`, `epochs` is given."""
    samples: Count | None = None
    """Length in samples seen, rounded up to whole batches."""
    epochs: Positive | None = None
    """Length in passes over the data (fractions allowed), rounded up to whole batches."""
    batch: Count = 128
    """Samples a step, over all workers. Contrastive losses see all of them as each other's negatives."""
    micro_batch: Execution[Count | Literal["auto"] | None] = None
    """Samples encoded at once by one worker, to save memory; the loss still sees the whole batch. `auto`: as many as
    fit. Default: all."""

    learning_rate: Positive = 1e-3
    """Peak learning rate of AdamW, reached after the warm-up."""
    weight_decay: NotNegative = 0.1
    """Decoupled weight decay, on parameters of two or more dimensions (CLIP: 0.2)."""
    no_weight_decay: list[str] = []
    """Further parameters without weight decay: parts of their names, for instance `positional_embedding`."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learning rate of a layer over that of the layer above it, counted from the outputs of each tower."""
    betas: Annotated[list[Share], Field(min_length=2, max_length=2)] = [0.9, 0.98]
    """AdamW's decay rates of the first and second moment."""
    eps: Positive = 1e-6
    """AdamW's denominator term."""
    warmup_steps: Annotated[int, Field(ge=0)] = 30
    """Steps over which the learning rate rises linearly from 0."""
    schedule: Literal["cosine", "linear", "constant", "exponential"] = "cosine"
    """Shape of the learning rate after the warm-up; cosine and linear end at 0."""
    exponential: Exponential = Exponential()
    """How `schedule: exponential` rises and falls."""
    clip_grad_norm: Positive | None = 5.0
    """Largest global norm of the gradient; larger ones are scaled down. `null`: no clipping."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Decides initial weights, order of samples, augmentation, caption choice and dropout."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """Arithmetic of the encoders; weights, losses and optimiser are always fp32. `tf32`: fp32 with a GPU's faster,
    coarser products, which bf16 and fp16 allow for the rest, too; fp16 scales the loss. `auto`: bf16 with a GPU, else
    fp32."""
    compile: Execution[bool] = False
    """Compile the encoders' blocks (torch.compile): a minute at the start, faster steps on a GPU."""
    recompute: Execution[bool] = False
    """Keep no activations inside the encoders' blocks but compute them again in the backward pass: less memory, about
    a third more time."""
    sharding: Execution[Literal["none", "full"]] = "none"
    """How several workers hold weights and optimiser state: each its own copy, or a share each (FSDP2)."""
    patch_dropout: Share | None = None
    """Share of the image patches that a training step leaves out at random (FLIP: 0.5). Default: the model's own."""
    locked: Locked = Locked()
    """Towers that keep the weights they start from."""
    ema: Ema | None = None
    """Keep a moving average of the weights; `result: ema` makes it the stage's Model."""
    validation: Validation | None = None
    """Look at held-out samples while training. Does not change the weights. Default: off."""
    select: Select = Select()
    """By which validation metric `result: best` chooses."""
    result: Literal["last", "best", "ema"] = "last"
    """Which weights become the stage's Model: the last, those of the best validation, or the moving average."""
    augment: Augment = Augment()
    """What is done to images in training."""
    captions: CaptionPolicy = CaptionPolicy()
    """Which caption of a sample is seen."""
    read: Literal["auto", "exact", "block"] = "auto"
    """Order of the samples: each drawn from all of the data, or blocks of the shards in shuffled order, mixed while
    they are at hand. `auto`: exact for data of at most 4 GiB of images, and where blocks would save few requests."""
    decoder: Execution[Literal["auto", "pillow"]] = "auto"
    """What decodes JPEGs in training. `auto`: simplejpeg where it is installed, with the same pixels in less time."""
    loader_processes: Execution[Annotated[int, Field(ge=0)]] = 0
    """Processes of one worker that read, decode and tokenise. 0: threads of the worker's own process do."""
    max_bad: Execution[MaxBad] = FEW
    """How many samples may have images that cannot be decoded: a count, or a share of the data set's samples. Each is
    counted with its reason and replaced by the next one in the order; one more, and the training fails."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """When loss or gradient is not finite: stop, or skip the step. The batch's sample ids are kept either way."""
    nonfinite_limit: Count = 10
    """With `on_nonfinite: skip`, the number of skipped steps that is still accepted."""

    report_every: Execution[Count] = 10
    """Steps between two points of the curves."""
    checkpoint_every: Execution[Count] = 100
    """Steps between two checkpoints: the most work that a crash can cost."""
    keep_checkpoints: Execution[Count] = 2
    """Complete checkpoints kept while the stage runs."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        given = [name for name in ("steps", "samples", "epochs") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none of them"
            raise ValueError(
                f"exactly one of steps, samples, epochs is needed to say how long to train; found {found}"
            )
        return self

    @model_validator(mode="after")
    def _result_exists(self) -> Self:
        if self.result == "ema" and self.ema is None:
            raise ValueError("result: ema needs a moving average; write `ema: {}` or `ema: {decay: 0.999}`")
        if self.result == "best" and self.validation is None:
            raise ValueError("result: best needs validations; write `validation: {every_samples: ...}`")
        return self

    def total_samples(self, dataset_size: int) -> int:
        """Length of the training in samples, a multiple of `batch`, on a data set of `dataset_size` samples."""
        if self.steps is not None:
            return self.steps * self.batch
        wanted: float = self.samples or (self.epochs or 0) * dataset_size
        return math.ceil(wanted / self.batch) * self.batch
