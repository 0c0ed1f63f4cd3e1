"""The model of an `embed` stage on its device, in its precision: pixels and tokens to what is stored."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from orchestrator.data.embeddings import DTYPES
from orchestrator.data.preprocess import Preprocess, Tokenizer
from orchestrator.errors import StageError
from orchestrator.models.interface import Model
from orchestrator.stages.embed.batches import Inputs
from orchestrator.stages.embed.config import EmbedStage
from orchestrator.stages.models import load_input
from orchestrator.store.artifacts import Handle

CODES = 1 << 16
"""Codes are stored in 16 bits."""


class Encoder:
    """Loads the stage's model.

    Args:
        inputs, names: the stage's (stages/base.py).
        device: where it computes.
    """

    def __init__(
        self, config: EmbedStage, inputs: Mapping[str, Handle], names: Mapping[str, str], device: torch.device
    ) -> None:
        self.preprocess: Preprocess
        self.tokenizer: Tokenizer
        self.model: Model
        self.model, self.preprocess, self.tokenizer = load_input(inputs, names, "model", device)
        self._device, self._bf16 = device, config.precision == "bf16"
        self._features = DTYPES[config.dtype]

    def __call__(self, array: str, inputs: Inputs) -> np.ndarray:
        """What goes into an array (`image`, `text`, `codes`): [inputs.size, facets, dims], as it is stored."""
        made = None
        for places, piece in inputs.pieces:
            values = self._encode(array, piece)
            if made is None:
                made = np.empty((inputs.size, *values.shape[1:]), values.dtype)
            made[places] = values
        assert made is not None
        for black, _, _ in inputs.bad:
            made[black] = 0
        return made

    def scale(self) -> float | None:
        """The multiplier of similarities that the model was trained with."""
        logarithm = getattr(self.model, "logit_scale", None)
        return None if logarithm is None else float(logarithm.detach().exp())

    @torch.inference_mode()
    def _encode(self, array: str, piece: Tensor) -> np.ndarray:
        there = piece.to(self._device, non_blocking=True)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            if array == "text":
                found = self.model.encode_text(there)
            else:
                pixels = self.preprocess.normalise(there)
                found = self.model.codes(pixels) if array == "codes" else self.model.encode_image(pixels)
        if found.ndim == 2:
            found = found[:, None]
        if array != "codes":
            return found.float().cpu().numpy().astype(self._features)
        if int(found.max()) >= CODES:
            raise StageError(f"the model's codes go beyond {CODES - 1:,}, the largest that is stored")
        return found.cpu().numpy().astype(DTYPES["codes"])
