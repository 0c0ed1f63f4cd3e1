"""What differs between training methods, and nothing else: the `Method` contract.

The loop, data, precision, distribution, checkpoints, logging and resume are shared (training/). A method owns the
trained modules, says what it wants to see of each sample (`views`), turns a micro-batch into features (`encode`, which
gradient caching may run twice), features into named loss terms (`loss`, which gathers over ranks itself and is right
at any number of them), and may act between steps and episodes. A method that needs less overrides less: plain CLIP is
`encode` and `loss`.

Tried on paper against the systems to come: TinyCLIP's learnable masks are a phase with two optimiser groups, whose end
hook prunes the model and rebuilds the optimisers; ProtoCLIP's episodes are a `sampler` plus `on_episode_start`, which
extracts features and clusters; A-CLIP asks for three image views with boxes and keeps its EMA tower in
`on_step_start`; FLAME asks for text Embeddings by uid and has no text tower; LexVLA's sparse scores are its Model's
`score`; the captioner's `encode` yields token logits and codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from orchestrator.data.embeddings import StoredViews
from orchestrator.data.preprocess import Preprocess, Tokenizer
from orchestrator.models.depth import depths
from orchestrator.models.interface import Model
from orchestrator.models.open_clip_bridge import create
from orchestrator.recipe.schema import Config
from orchestrator.training.flops import step_flops
from orchestrator.training.types import Batch, Group, Phase, Views, World

Features = Mapping[str, Tensor]
"""What `encode` yields: name -> [rows of the micro-batch, ...]. Concatenated over micro-batches along the rows."""


@dataclass(frozen=True)
class LossOutput:
    """Named weighted terms (their sum is minimised) and numbers that are only reported. Scalars, float32."""

    terms: Mapping[str, Tensor]
    reported: Mapping[str, Tensor]

    @property
    def total(self) -> Tensor:
        """Sum of the weighted terms."""
        return torch.stack(tuple(self.terms.values())).sum()


@dataclass(frozen=True)
class Build:
    """What a method is built from.

    Attributes:
        model: the model to train, already initialised (random, or inherited by the stage's `init`).
        teacher: a frozen model in eval mode on the same device, or None.
        total_samples: length of the training in samples.
        batch: global batch.
        world: ranks and device.
        seed: of the stage.
        preprocess, tokenizer: the model's; `teacher_preprocess`, `teacher_tokenizer`: the teacher's. A method whose
            teacher sees the student's batch refuses the pairs that do not fit.
        stored: the teacher's features where they were computed before the training; `teacher` is None then.
        inherited: whether `init` gave `model` the weights of a model of its own kind.
        captions: at most so many captions of the training data, the same ones each time, spread over all of it: for a
            method that prepares itself by what they speak of.
    """

    model: Model
    teacher: Model | None
    total_samples: int
    batch: int
    world: World
    seed: int
    preprocess: Preprocess | None = None
    tokenizer: Tokenizer | None = None
    teacher_preprocess: Preprocess | None = None
    teacher_tokenizer: Tokenizer | None = None
    stored: StoredViews | None = None
    inherited: bool = False
    captions: Callable[[int], Sequence[str]] | None = None


class Method(nn.Module):
    """Base of all methods. Registered sub-modules are what is checkpointed, moved and made equal on all ranks."""

    gradient_cache: ClassVar[bool] = True
    """False where batch statistics forbid encoding in micro-batches."""

    def __init__(self, config: Config, build: Build) -> None:
        super().__init__()
        self.config = config
        self.world = build.world
        self.model = build.model

    @classmethod
    def make_model(cls, config: Any, shape: Mapping[str, Any], seed: int) -> Model:
        """The model to train, its weights drawn from `seed`, on the CPU. Default: the CLIP that `shape` describes.

        Args:
            config: the method's options.
            shape: the open_clip configuration of `model:`.
        """
        return create(shape, seed=seed)

    def phases(self, total_samples: int) -> Sequence[Phase]:
        """What is trained, for how long: consecutive shares of the training. Default: one phase, everything."""
        return (Phase(name="train", until=total_samples),)

    def sampler(self, spec: Any) -> Any | None:
        """A sampler of its own, or None for the loop's shuffled epochs."""
        return None

    def views(self) -> Views:
        """What it wants to see of each sample. Default: one augmented image, one caption."""
        return Views()

    def targets(self, batch: Batch) -> Features:
        """What a step needs of one micro-batch without gradient: a teacher's features, online or from
        `batch.embeddings`.

        Called once, without gradient, before `encode`; its features stand beside those of `encode` in `loss`.
        """
        return {}

    def encode(self, batch: Batch) -> Features:
        """One micro-batch to features. May be called twice on the same batch (gradient caching): no side effects."""
        raise NotImplementedError

    def loss(self, features: Features, state: Mapping[str, Any]) -> LossOutput:
        """Features of this rank's whole batch to loss terms.

        Gathers over `self.world` inside, with gradient, so that the mean over ranks of the back-propagated gradients
        equals the gradient of the loss on the concatenated batch. `state` has `samples` (seen before this step) and
        `phase`.
        """
        raise NotImplementedError

    def groups(self, phase: Phase) -> Sequence[Group]:
        """Parameter groups of a phase. Default: all that is trainable, weight decay on two or more dimensions."""
        decay: list[tuple[str, nn.Parameter]] = []
        plain: list[tuple[str, nn.Parameter]] = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                excluded = parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
                (plain if excluded else decay).append((name, parameter))
        return (Group("decay", tuple(decay)), Group("no_decay", tuple(plain), weight_decay=0.0))

    def depths(self) -> Mapping[str, int]:
        """By name of a parameter, how many layers it lies below the outputs (`layer_decay`). Default: the model's."""
        return {f"model.{name}": depth for name, depth in depths(self.model).items()}

    def flops(self, batch: Batch) -> float:
        """Floating-point operations of a step on this rank's batch: three forward passes for each trained tower, one
        for a frozen one, what is computed twice to save memory counted once. Default: the model's, on every view.
        """
        return step_flops(self.model, batch)

    def on_phase_start(self, phase: Phase) -> None:
        """May change the modules; optimisers are built after it."""

    def on_phase_end(self, phase: Phase) -> None:
        """For instance TinyCLIP's pruning; the next phase's optimisers are new."""

    def structure(self) -> Mapping[str, Any]:
        """Plain values that tell what finished phases did to the modules' shapes; kept in checkpoints."""
        return {}

    def restore_phase(self, phase: Phase, structure: Mapping[str, Any]) -> None:
        """Bring fresh modules into the shape they had in `phase`; the checkpoint's weights are loaded after it.

        Default: what `on_phase_start` does (freezing, new heads), for a method whose phases do not change shapes.
        """
        self.on_phase_start(phase)

    def on_step_start(self, samples: int) -> None:
        """Before a step's first `encode`."""

    def on_step_end(self, samples: int) -> None:
        """After the optimiser's step: clamps, EMA."""

    def result(self) -> Model:
        """The Model this training makes (heads, masks and teachers left behind)."""
        return self.model
