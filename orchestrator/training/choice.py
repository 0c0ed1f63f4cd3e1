"""Which moment of the training was the best, by a validation figure; and the weights it had."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from orchestrator.errors import UserError
from orchestrator.training.config import Select


class Choice:
    """Remembers the best validation so far.

    Attributes:
        metric, value, samples: the figure judged by, its best value (NaN before the first validation), and the
            position it had it at; of equal values the first counts.
        weights: copies of the model's then, on the CPU; only if `keep`.
    """

    def __init__(self, select: Select, keep: bool) -> None:
        self.metric, self._sign, self._keep = select.metric, 1 if select.mode == "max" else -1, keep
        self.value, self.samples = math.nan, 0
        self.weights: dict[str, Tensor] | None = None

    def consider(
        self, samples: int, figures: Mapping[str, float], weights: Callable[[], Mapping[str, Tensor]]
    ) -> None:
        """Take note of a validation. UserError if it has not the figure to judge by."""
        if self.metric not in figures:
            if not self._keep:
                return
            known = ", ".join(figures)
            raise UserError(f"these data give no {self.metric} to choose by", f"Set select.metric to one of: {known}.")
        value = figures[self.metric]
        if math.isnan(value) or not (math.isnan(self.value) or self._sign * (value - self.value) > 0):
            return
        self.value, self.samples = value, samples
        if self._keep:
            self.weights = {name: tensor.detach().cpu().clone() for name, tensor in weights().items()}

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"value": self.value, "samples": self.samples, "weights": self.weights}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.value, self.samples, self.weights = state["value"], state["samples"], state["weights"]
