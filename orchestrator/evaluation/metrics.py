"""From scores to figures: ranks first, everything else from ranks.

A question has candidates and at least one right answer; its rank is the 1-based place of the best right answer when
candidates are sorted by falling score, equal scores staying in candidate order. Top-k accuracy and recall at k are the
share of ranks <= k, so one integer a question is all that needs keeping, and models that answered the same questions
can be compared pair by pair.

Intervals are percentile bootstraps over samples. The draws depend on (seed, purpose) and the number of samples alone,
so every model meets the same draws: the difference or ratio of two columns of draws is a paired bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from orchestrator.data.draws import integer

LEVEL = 0.95
"""Coverage of every interval."""


def classifier_weights(prompts: Tensor, counts: Sequence[int]) -> Tensor:
    """Class features [C, d] from prompt features [P, d] that lie class by class, `counts[c]` of them for class c.

    w_c = normalise(mean over prompts of normalise(prompt)), as CLIP_benchmark's `zero_shot_classifier` (transposed).
    """
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(prompts.device)
    sums = torch.zeros(len(counts), prompts.shape[1], dtype=prompts.dtype, device=prompts.device)
    sums.index_add_(0, owner, normalize(prompts, dim=-1))
    return normalize(sums / torch.tensor(counts, device=prompts.device)[:, None], dim=-1)


def ranks(scores: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rank [Q] of candidate `target[q]` among scores [Q, C]; equal scores keep candidate order."""
    own = np.take_along_axis(scores, target[:, None], axis=1)
    earlier = np.arange(scores.shape[1])[None, :] < target[:, None]
    return 1 + ((scores > own) | ((scores == own) & earlier)).sum(axis=1)


def best_ranks(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Rank [Q] of the best right candidate: `right` [Q, C] is true at right answers, at least one a row."""
    best = np.where(right, scores, -np.inf).argmax(axis=1)  # argmax takes the first, as the order of ties does
    return ranks(scores, best)


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """Candidates [Q, min(k, C)] in falling order of score; equal scores keep candidate order."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def within(rank: np.ndarray, k: int) -> float:
    """Share of ranks <= k: top-k accuracy, or recall at k in the sense of "at least one hit"."""
    return float((rank <= k).mean())


def mean_class_recall(rank: np.ndarray, target: np.ndarray) -> float:
    """Mean over the classes present in `target` of their top-1 accuracy (scikit-learn's balanced accuracy)."""
    _, index = np.unique(target, return_inverse=True)
    return float((np.bincount(index, weights=rank == 1) / np.bincount(index)).mean())


def chance(candidates: np.ndarray, positives: np.ndarray, k: int) -> float:
    """Expected share of ranks <= k under random scores, for questions with `positives` right ones of `candidates`.

    1 - prod_{j<k} (n - c - j) / (n - j); for one right answer k / n.
    """
    miss = np.ones(len(candidates))
    for j in range(k):
        left = candidates - j
        miss *= np.where(left > 0, np.clip(left - positives, 0, None) / np.maximum(left, 1), 0.0)
    return float((1 - miss).mean())


def draws(hits: np.ndarray, units: np.ndarray, samples: int, seed: int, purpose: str) -> np.ndarray:
    """Bootstrap draws [samples, m] of the column means of hits [Q, m].

    Resampled are the units (units[q] in 0..U-1: several captions of one image go together), U of them with repetition.
    Equal (seed, purpose, U) give equal draws, so columns of different calls are paired.
    """
    num_units = int(units.max()) + 1
    sums = np.zeros((num_units, hits.shape[1]))
    np.add.at(sums, units, hits)
    sizes = np.bincount(units, minlength=num_units).astype(float)
    rng = np.random.Generator(np.random.Philox(key=integer(seed, "bootstrap", purpose)))
    out = np.empty((samples, hits.shape[1]))
    for row in range(samples):
        times = np.bincount(rng.integers(num_units, size=num_units), minlength=num_units).astype(float)
        out[row] = times @ sums / (times @ sizes)
    return out


def interval(values: np.ndarray) -> tuple[float, float]:
    """Percentile interval of bootstrap draws, at `LEVEL`; its ends are draws, so an infinite one stays infinite."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)


def compare(value: float, against: float, drawn: np.ndarray, drawn_against: np.ndarray) -> dict[str, float | None]:
    """Difference and ratio of two models' means with paired intervals, from draws that share their resamples.

    A ratio to zero has no value: None there, and None for an upper end that some draws put beyond any bound.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(drawn_against > 0, drawn / drawn_against, np.inf)
    difference, ratio = interval(drawn - drawn_against), interval(ratios)
    return {
        "difference": value - against,
        "difference.low": difference[0],
        "difference.high": difference[1],
        "ratio": value / against if against > 0 else None,
        "ratio.low": ratio[0] if np.isfinite(ratio[0]) else None,
        "ratio.high": ratio[1] if np.isfinite(ratio[1]) else None,
    }
