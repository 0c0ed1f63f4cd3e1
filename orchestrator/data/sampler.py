"""The order in which samples are seen: one keyed permutation of the data an epoch, computed position by position.

The permutation is a balanced Feistel network over the smallest even number of bits that holds n, walked until it lands
below n (cycle walking, at most four times the work on average). So a position's sample costs O(1) time and no memory,
at any n and any position: an exact global shuffle whose resume is a number. Keys come from BLAKE2b over (seed,
"order", epoch), the round function is splitmix64's finaliser: the order depends on no library's generator.
"""

from __future__ import annotations

import numpy as np

from orchestrator.data.draws import integer

ROUNDS = 8


def permute(positions: np.ndarray, size: int, seed: int, epoch: int, what: str = "order") -> np.ndarray:
    """Where an epoch's positions [n] (each below `size`) land: [n] int64, a bijection of range(size).

    `what` names the permutation among those of an epoch.
    """
    if size == 1:
        return np.zeros(len(positions), np.int64)
    half = ((size - 1).bit_length() + 1) // 2
    keys = [integer(seed, what, epoch, number) & (2**64 - 1) for number in range(ROUNDS)]
    values = _feistel(positions.astype(np.uint64), half, keys)
    outside = np.flatnonzero(values >= size)
    while outside.size:
        values[outside] = _feistel(values[outside], half, keys)
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half: int, keys: list[int]) -> np.ndarray:
    """One pass of the network over `2 * half` bits; uint64 [n] to uint64 [n]."""
    shift, mask = np.uint64(half), np.uint64(2**half - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        mixed = (right + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(key)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        left, right = right, (left ^ (mixed ^ (mixed >> np.uint64(31)))) & mask
    return (left << shift) | right


class Shuffled:
    """Endless epochs over `size` samples; position 0 is the first sample of epoch 0."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed

    def rows(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Epochs [count] and rows [count] (below `size`) of the positions from `start` on, across epochs."""
        positions = np.arange(start, start + count)
        epochs = positions // self.size
        rows = np.empty(count, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = permute(positions[here] % self.size, self.size, self.seed, int(epoch))
        return epochs, rows
