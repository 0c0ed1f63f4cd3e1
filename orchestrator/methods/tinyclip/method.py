"""TinyCLIP's training: a frozen teacher sees what the student sees, and the student mimics its similarities.

The teacher is no sub-module: it is neither trained, nor checkpointed, nor left in the result. Its features are
computed online, in eval mode and without gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from orchestrator.errors import UserError
from orchestrator.methods.clip.loss import info_nce
from orchestrator.methods.clip.method import MAX_SCALE
from orchestrator.methods.tinyclip.config import TinyCLIP
from orchestrator.methods.tinyclip.loss import Pairs, affinity_mimicking
from orchestrator.models.clip import OpenClipModel
from orchestrator.models.interface import Model
from orchestrator.training.gather import gather
from orchestrator.training.method import Build, Features, LossOutput, Method
from orchestrator.training.types import Batch


class TinyClipMethod(Method):
    """Affinity mimicking, with a share of CLIP's contrastive loss where alpha < 1."""

    config: TinyCLIP
    model: OpenClipModel

    def __init__(self, config: TinyCLIP, build: Build) -> None:
        super().__init__(config, build)
        self._teacher = (_checked_teacher(build, own_scale=config.scale is None),)  # a tuple: not a sub-module
        if config.scale is not None:
            with torch.no_grad():
                self.model.logit_scale.fill_(math.log(config.scale))
            self.model.logit_scale.requires_grad_(False)

    @property
    def teacher(self) -> Any:
        """The frozen model that is mimicked."""
        return self._teacher[0]

    def encode(self, batch: Batch) -> Features:
        """`image`, `text` of the student [B, d] and `teacher_image`, `teacher_text` [B, d'], from the same crop and
        tokens.
        """
        images, tokens = batch.images[0], batch.tokens[0]
        with torch.no_grad():
            teacher_image, teacher_text = self.teacher.encode_image(images), self.teacher.encode_text(tokens)
        return {
            "image": self.model.encode_image(images),
            "text": self.model.encode_text(tokens),
            "teacher_image": teacher_image,
            "teacher_text": teacher_text,
        }

    def loss(self, features: Features, state: Mapping[str, Any]) -> LossOutput:
        """Terms `distill` and, where alpha < 1, `contrastive`; reports the divergence `kl`, which ends at 0, and the
        scale.
        """
        alpha, weight = self.config.alpha, self.config.distill_weight
        student = self._pairs(features["image"], features["text"], self._scale())
        teacher = self._pairs(
            features["teacher_image"].detach(), features["teacher_text"].detach(), self._teacher_scale()
        )
        soft = affinity_mimicking(student, teacher)
        terms = {"distill": weight * alpha * (soft.image_to_text + soft.text_to_image) / 2}
        if alpha < 1:
            terms["contrastive"] = weight * (1 - alpha) * self._contrastive(student)
        return LossOutput(terms, {"kl": soft.kl, "logit_scale": torch.as_tensor(student.scale).detach()})

    def on_step_end(self, samples: int) -> None:
        """A learned scale is kept in [1, 100]; a fixed one is out of the optimiser's reach."""
        if self.config.scale is None:
            with torch.no_grad():
                self.model.logit_scale.clamp_(0, math.log(MAX_SCALE))

    def _contrastive(self, student: Pairs) -> Tensor:
        scale = torch.as_tensor(student.scale, device=student.image.device)
        return info_nce(student.image, student.text, student.all_image, student.all_text, scale, self.world.rank)

    def _pairs(self, image: Tensor, text: Tensor, scale: Tensor | float) -> Pairs:
        return Pairs(image, text, gather(image, self.world), gather(text, self.world), scale)

    def _scale(self) -> Tensor | float:
        return self.model.logit_scale.exp() if self.config.scale is None else self.config.scale

    def _teacher_scale(self) -> Tensor | float:
        return self.teacher.logit_scale.detach().exp() if self.config.scale is None else self.config.scale


def _checked_teacher(build: Build, own_scale: bool) -> Model:
    """The build's teacher, frozen and in eval mode; UserError where it cannot see what the student sees."""
    teacher = build.teacher
    if teacher is None:
        raise UserError("method tinyclip needs a teacher", "Use a distill stage and give it `teacher:`.")
    if not isinstance(build.model, OpenClipModel):
        raise UserError("tinyclip trains open_clip models", "Choose a model: of the catalog.")
    if own_scale and not hasattr(teacher, "logit_scale"):
        raise UserError("the teacher has no scale of its own", "Set tinyclip's `scale`, for instance to 50.")
    if build.teacher_preprocess != build.preprocess:
        raise UserError(
            f"teacher and student want different images: {build.teacher_preprocess} and {build.preprocess}",
            "Give the student the teacher's image_size, mean and std.",
        )
    mine, theirs = build.tokenizer, build.teacher_tokenizer
    if mine and theirs and (mine.name != theirs.name or mine.context_length > theirs.context_length):
        raise UserError(
            f"the teacher cannot read the student's tokens: {theirs} and {mine}",
            "Give the student the teacher's tokenizer and at most its context_length.",
        )
    return teacher.requires_grad_(False).eval()
