"""Texts of many lengths, encoded in a few groups, each cut to its own longest text.

One long caption makes a whole batch as long as itself. Rows do not see each other, so a batch may be sorted by length
and encoded in groups. A group more has its price, too: a pass over the weights and the start of every kernel, told in
tokens that could have been computed meanwhile. `split` finds the groups of least total cost: the sum of
rows x longest text, plus the price of each.
"""

from __future__ import annotations

from collections.abc import Sequence

PASS_OVER_WEIGHTS = 40
"""Price of a group on a CPU, in tokens: reading the weights, and adding up two gradients of them."""
CPU_STARTS, GPU_STARTS = 400_000, 1_500_000_000
"""Price of a group in tokens times width squared: what the starting kernels of a block cost, in multiply-adds."""


def price(width: int, gpu: bool) -> float:
    """Tokens that one more group costs, for a transformer of that width."""
    return PASS_OVER_WEIGHTS + (GPU_STARTS if gpu else CPU_STARTS) / width**2


def split(lengths: Sequence[int], price: float) -> list[tuple[int, int]]:
    """(rows, longest text) of each group, by rising length, for rows of these lengths sorted by length.

    The cheapest split, found over the distinct lengths; one group where no split saves anything.
    """
    longest = max(lengths)
    if len(lengths) * longest - sum(lengths) <= price:
        return [(len(lengths), longest)]
    counts: dict[int, int] = {}
    for length in sorted(lengths):
        counts[length] = counts.get(length, 0) + 1
    sizes, rows = list(counts), list(counts.values())
    best: list[tuple[float, int]] = [(0.0, 0)]  # cost of the first n sizes, and where their last group begins
    for end, size in enumerate(sizes, start=1):
        taken, options = 0, []
        for begin in range(end - 1, -1, -1):
            taken += rows[begin]
            options.append((best[begin][0] + price + taken * size, begin))
        best.append(min(options))
    groups: list[tuple[int, int]] = []
    end = len(sizes)
    while end:
        begin = best[end][1]
        groups.append((sum(rows[begin:end]), sizes[end - 1]))
        end = begin
    return groups[::-1]
