"""TinyCLIP's training: a frozen teacher sees what the student sees, and the student mimics its similarities.

The teacher is no sub-module: it is neither trained, nor checkpointed, nor left in the result. Its features are a
step's `targets`: computed online, in eval mode and without gradient, or once for all steps by an `embed` stage, whose
views the student then sees. In that case there is no teacher here at all.
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
from orchestrator.training.flops import step_flops
from orchestrator.training.gather import gather
from orchestrator.training.method import Build, Features, LossOutput, Method
from orchestrator.training.types import Batch


class TinyClipMethod(Method):
    """Affinity mimicking, with a share of CLIP's contrastive loss where alpha < 1."""

    config: TinyCLIP
    model: OpenClipModel

    def __init__(self, config: TinyCLIP, build: Build) -> None:
        super().__init__(config, build)
        _check_build(config, build)
        teacher = None if build.teacher is None else build.teacher.requires_grad_(False).eval()
        self._teacher, self._stored = (teacher,), build.stored  # a tuple: not a sub-module
        if config.scale is not None:
            with torch.no_grad():
                self.model.logit_scale.fill_(math.log(config.scale))
            self.model.logit_scale.requires_grad_(False)

    @property
    def teacher(self) -> Any:
        """The frozen model that is mimicked; None where its features are stored."""
        return self._teacher[0]

    def targets(self, batch: Batch) -> Features:
        """`teacher_image`, `teacher_text` [B, d'] of the crop and tokens that the student sees; read where stored."""
        if self._stored is not None:
            return {"teacher_image": batch.embeddings["image"], "teacher_text": batch.embeddings["text"]}
        with torch.no_grad():
            return {
                "teacher_image": self.teacher.encode_image(batch.images[0]),
                "teacher_text": self.teacher.encode_text(batch.tokens[0]),
            }

    def encode(self, batch: Batch) -> Features:
        """`image`, `text` of the student, [B, d] each, L2-normalised."""
        return {"image": self.model.encode_image(batch.images[0]), "text": self.model.encode_text(batch.tokens[0])}

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

    def flops(self, batch: Batch) -> float:
        """The student's, and one forward pass of a teacher that runs beside it."""
        return super().flops(batch) + (0.0 if self.teacher is None else step_flops(self.teacher, batch))

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
        if self.config.scale is not None:
            return self.config.scale
        if self._stored is not None:
            assert self._stored.about.scale is not None
            return self._stored.about.scale
        return self.teacher.logit_scale.detach().exp()


def _check_build(config: TinyCLIP, build: Build) -> None:
    """UserError where there is no teacher, or one that cannot see what the student sees."""
    if build.teacher is None and build.stored is None:
        raise UserError("method tinyclip needs a teacher", "Use a distill stage and give it `teacher:`.")
    if not isinstance(build.model, OpenClipModel):
        raise UserError("tinyclip trains open_clip models", "Choose a model: of the catalog.")
    has_scale = hasattr(build.teacher, "logit_scale") if build.stored is None else build.stored.about.scale is not None
    if config.scale is None and not has_scale:
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
