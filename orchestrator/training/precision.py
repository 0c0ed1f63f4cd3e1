"""Arithmetic of the encoders, and the scaled loss that fp16 needs.

Weights, losses and optimiser are fp32 always; `autocast` makes the encoders' products bf16 or fp16. fp16's gradients
would vanish below 6e-8, so the loss is multiplied by a scale that doubles after a while without overflow and halves at
one, whose step is left out (Micikevicius et al. 2018). The scale follows from the global gradient norm, which all
ranks share: torch's `GradScaler` would judge each rank's shard by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
FIRST_SCALE = 2.0**16
SMALLEST_SCALE = 1.0
STEPS_TO_DOUBLE = 2000


def allow_tf32(precision: str) -> None:
    """Let fp32 products on a GPU use tensor cores, unless the precision is fp32 itself."""
    mode = "ieee" if precision == "fp32" else "tf32"
    torch.backends.cuda.matmul.fp32_precision = mode
    torch.backends.cudnn.conv.fp32_precision = mode  # type: ignore[attr-defined]


class LossScale:
    """What fp16 multiplies the loss by; 1 and constant for any other precision."""

    def __init__(self, precision: str) -> None:
        self.moves = precision == "fp16"
        self.value = FIRST_SCALE if self.moves else 1.0
        self.good_steps = 0

    def divide(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give the gradients their true size again."""
        if self.value != 1.0:
            torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], 1 / self.value)

    def overflowed(self) -> bool:
        """A step's gradient was not finite: halve; False where no smaller scale can help."""
        self.good_steps = 0
        if not self.moves or self.value <= SMALLEST_SCALE:
            return False
        self.value /= 2
        return True

    def held(self) -> None:
        """A step's gradient was finite: double after a while."""
        self.good_steps += 1
        if self.moves and self.good_steps == STEPS_TO_DOUBLE:
            self.value, self.good_steps = 2 * self.value, 0

    def state(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"value": self.value, "good_steps": self.good_steps}

    def restore(self, state: dict[str, float]) -> None:
        """Go on from a checkpoint."""
        self.value, self.good_steps = state["value"], int(state["good_steps"])
