"""The moving average of a model's weights (EMA), beside the training and never seen by it.

After step n each weight of the average becomes d * average + (1 - d) * weight, with d = min(decay, (1 + n) / (10 + n))
while the warm-up of the average lasts (Tan and Le 2019's and timm's rule). What is not a floating-point number (counts
of batch norms) is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from orchestrator.training.config import Ema

ShareLike = Callable[[Tensor, Tensor], Tensor]
"""Of a tensor of this rank's and a whole one: the whole one's share, as the first has it (training/parallel.py)."""


class Average:
    """The average of `model`'s state, which begins as its weights are now; lies where and as they do."""

    def __init__(self, model: nn.Module, config: Ema) -> None:
        self._model, self._config = model, config
        self._weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def fits(self, model: nn.Module) -> bool:
        """Whether it is the average of a model of this shape (a phase may have pruned it)."""
        now = {name: value.shape for name, value in model.state_dict().items()}
        return model is self._model and now == {name: value.shape for name, value in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the model's weights after its step number `step`, from 1."""
        decay = self._config.decay
        if self._config.warmup:
            decay = min(decay, (1 + step) / (10 + step))
        averages, weights = [], []
        for name, value in self._model.state_dict().items():
            if value.is_floating_point():
                averages.append(self._weights[name])
                weights.append(value)
            else:
                self._weights[name].copy_(value)
        torch._foreach_lerp_(averages, weights, 1 - decay)

    def load(self, weights: Mapping[str, Tensor], share_like: ShareLike) -> None:
        """Go on from a checkpoint's whole tensors."""
        for name, value in self._weights.items():
            value.copy_(share_like(value, weights[name]))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While inside, the model has the average's weights; afterwards its own again, bit for bit."""
        own = {name: value.detach().clone() for name, value in self._model.state_dict().items()}
        self._put(self._weights)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, weights: Mapping[str, Tensor]) -> None:
        for name, value in self._model.state_dict().items():
            value.copy_(weights[name])
