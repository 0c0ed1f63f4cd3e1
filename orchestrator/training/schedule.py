"""The learning rate as a function of samples seen: linear warm-up, then cosine, linear or constant."""

from __future__ import annotations

import math


def rate(samples: int, *, peak: float, batch: int, total: int, warmup: int, shape: str) -> float:
    """Learning rate of the step that begins after `samples` samples.

    Args:
        samples: samples seen before the step.
        peak: learning rate at the end of the warm-up.
        batch: samples a step; the first step of a warm-up already moves (open_clip's `(step + 1) / warmup`).
        total, warmup: lengths in samples.
        shape: "cosine", "linear" or "constant".
    """
    if samples < warmup:
        return peak * min(1.0, (samples + batch) / warmup)
    progress = (samples - warmup) / max(total - warmup, 1)
    if shape == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    if shape == "linear":
        return peak * (1 - progress)
    return peak
