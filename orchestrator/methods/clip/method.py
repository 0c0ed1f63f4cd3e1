"""CLIP: two towers, one contrastive loss, a learned scale kept between 1 and 100."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from orchestrator.errors import UserError
from orchestrator.methods.clip.loss import info_nce, matches
from orchestrator.models.clip import OpenClipModel
from orchestrator.recipe.schema import Config
from orchestrator.training.gather import gather
from orchestrator.training.method import Build, Features, LossOutput, Method
from orchestrator.training.rows import closest
from orchestrator.training.types import Batch

MAX_SCALE = 100.0


class ClipMethod(Method):
    """Contrastive training of any model with a `logit_scale`."""

    model: OpenClipModel

    def __init__(self, config: Config, build: Build) -> None:
        super().__init__(config, build)
        if not isinstance(build.model, OpenClipModel):
            raise UserError("CLIP trains open_clip models", "Choose a model: of the catalog.")

    def targets(self, batch: Batch) -> Features:
        """Of `image` and `text` what comes from a wholly locked tower: gradient caching computes it once."""
        return encode_towers(self.model, batch, trained=False)

    def encode(self, batch: Batch) -> Features:
        """`image` and `text`, [B, d] each, L2-normalised; without those of locked towers."""
        return encode_towers(self.model, batch, trained=True)

    def loss(self, features: Features, state: Mapping[str, Any]) -> LossOutput:
        """The contrastive term; reports the scale and the share of this rank's images that find their text in the
        batch.
        """
        image, text, scale = features["image"], features["text"], self.model.logit_scale.exp()
        all_image, all_text = gather(image, self.world), gather(text, self.world)
        term = info_nce(image, text, all_image, all_text, scale, self.world.rank)
        found = closest(image, all_text) == matches(image, self.world.rank)
        reported = {"logit_scale": scale.detach(), "batch_top1": found.float().mean()}
        return LossOutput({"contrastive": term}, reported)

    def on_step_end(self, samples: int) -> None:
        """Keep the scale in [1, 100], as open_clip does after every step."""
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(MAX_SCALE))


def encode_towers(model: OpenClipModel, batch: Batch, *, trained: bool) -> Features:
    """Features [B, d] of the towers with trained weights, or of those without."""
    weights: dict[str, list[bool]] = {"image": [], "text": []}
    for name, parameter in model.network.named_parameters():
        if not name.startswith("logit_"):
            weights["image" if name.startswith("visual.") else "text"].append(parameter.requires_grad)
    features = {}
    if any(weights["image"]) == trained:
        features["image"] = model.encode_image(batch.images[0])
    if any(weights["text"]) == trained:
        features["text"] = model.encode_text(batch.tokens[0])
    return features
