"""Losses over pairs of rows and columns whose memory does not grow with the square of the batch.

Contrastive losses compare B rows with N columns, but each row's loss needs its own N similarities alone. So large
matrices are computed some rows at a time, and again in the backward pass (activation checkpointing), such that about
2^24 similarities exist at once: exact, for one more product of the features. Up to that size nothing is cut, and
nothing computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MAX_PAIRS = 2**24


def mean_over_rows(
    mean_of: Callable[..., tuple[Tensor, ...]], rows: Sequence[Tensor], num_columns: int
) -> tuple[Tensor, ...]:
    """What `mean_of(*rows)` returns, one or several means over the rows, without all pairs in memory at once.

    Args:
        mean_of: some rows of each of `rows` to scalars; what else it needs (columns, scale) is bound in it, and gets
            its gradient. Must not draw random numbers.
        rows: tensors [B, ...].
        num_columns: what each row is compared with; rows * columns pairs are computed.
    """
    parts = list(_split(rows, num_columns))
    if len(parts) == 1:
        return mean_of(*rows)
    sums: tuple[Tensor, ...] | None = None
    for part in parts:
        means = checkpoint(mean_of, *part, use_reentrant=False, preserve_rng_state=False)
        shares = [mean * (len(part[0]) / len(rows[0])) for mean in means]
        sums = tuple(shares) if sums is None else tuple(a + b for a, b in zip(sums, shares, strict=True))
    assert sums is not None
    return sums


@torch.no_grad()
def closest(rows: Tensor, columns: Tensor) -> Tensor:
    """The most similar of the columns [N, d] for each of the rows [B, d], by dot product: indices [B], no gradient."""
    return torch.cat([(part @ columns.T).argmax(dim=1) for (part,) in _split((rows,), len(columns))])


def _split(rows: Sequence[Tensor], num_columns: int) -> Iterator[tuple[Tensor, ...]]:
    size = max(1, MAX_PAIRS // num_columns)
    yield from zip(*(tensor.split(size) for tensor in rows), strict=True)
