"""Options of TinyCLIP distillation. Weight inheritance is the stage's `init:`, the shapes are `model:` and the
teacher's own.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from orchestrator.methods.config import MethodConfig


class TinyCLIP(MethodConfig):
    """Distillation by affinity mimicking: the student reproduces the teacher's image-text similarities."""

    runner: ClassVar[str] = "orchestrator.methods.tinyclip.method:TinyClipMethod"
    teacher: ClassVar[bool] = True

    alpha: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the distillation loss; the rest is CLIP's contrastive loss, which is not computed at 1 (the published
    setting).
    """
    distill_weight: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies the whole loss."""
    scale: Annotated[float, Field(gt=0)] | None = 50.0
    """Fixed multiplier of the similarities of teacher and student, 1 / temperature. `null`: the teacher keeps the one
    it was trained with, the student learns its own.
    """
