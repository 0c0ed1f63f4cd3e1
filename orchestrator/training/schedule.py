"""The learning rate as a function of samples seen: a linear warm-up, then cosine, linear, constant or exponential."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Steps:
    """The rate that falls in steps: `factor` ** (whole periods seen) of the peak, and never below `floor`.

    Attributes:
        factor: what each period multiplies the rate by.
        period: samples of a period, counted from the start of the training.
        floor: the least rate.
        first: the rate at the start of the warm-up.
    """

    factor: float
    period: float
    floor: float
    first: float


def rate(samples: int, *, peak: float, batch: int, total: int, warmup: int, shape: str | Steps) -> float:
    """Learning rate of the step that begins after `samples` samples.

    Args:
        samples: samples seen before the step.
        peak: learning rate at the end of the warm-up.
        batch: samples a step; the first step of a warm-up already moves (open_clip's `(step + 1) / warmup`), but for
            `Steps`, which says what the first step's rate is.
        total, warmup: lengths in samples.
        shape: "cosine", "linear" or "constant", or the steps it falls in (BLIP's `warmup_lr_schedule` and
            `step_lr_schedule`).
    """
    if isinstance(shape, Steps):
        if samples < warmup:
            return min(peak, shape.first + (peak - shape.first) * samples / warmup)
        return max(shape.floor, peak * shape.factor ** (samples // shape.period))
    if samples < warmup:
        return peak * min(1.0, (samples + batch) / warmup)
    progress = (samples - warmup) / max(total - warmup, 1)
    if shape == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    if shape == "linear":
        return peak * (1 - progress)
    return peak
