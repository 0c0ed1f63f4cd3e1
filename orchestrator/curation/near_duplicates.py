"""Near duplicates by what images look like: hashes (perceptual_hash.py) that differ in few bits.

Two hashes of 64 bits that differ in at most d of them agree in one of d + 1 pieces at least; so samples that agree in
a piece are brought together and compared. A sample goes if one with a lower id is near it, whether or not that one
stays: the result depends on no order. Flat images (one colour, blank pages) look like nothing, and are left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from orchestrator.curation.operator import Arrays, GroupedOperator, Tools, Verdict

if TYPE_CHECKING:
    import numpy as np

    from orchestrator.curation.block import Block

AT_ONCE = 1 << 23
"""Pairs of hashes that are compared at once."""


class NearDuplicates(GroupedOperator):
    """Drops images that look like another one's, a sample with a lower id. Colours count only as shades of grey."""

    bits: Annotated[int, Field(ge=0, le=15)] = 4
    """Bits of 64 in which near duplicates differ, at most. Drawings on white have much in common: 2 or 3 there."""

    def keys(self, tools: Tools) -> Callable[[Block], Arrays]:
        """The hash, and a group for each of its pieces: [n, pieces]."""
        import numpy as np

        from orchestrator.curation.perceptual_hash import FLAT, perceptual_hash

        def noted(block: Block) -> Arrays:
            found, reasons = block.decoded(perceptual_hash)
            hashes = np.array([FLAT if value is None else value for value in found], np.uint64)
            return {"group": pieces(hashes, self.bits + 1), "hash": hashes, "bad": np.array(reasons != "", bool)}

        return noted

    def compare(self, bucket: Arrays, tools: Tools) -> Verdict:
        """Those near one with a lower id, and those that could not be decoded."""
        import numpy as np

        from orchestrator.curation.perceptual_hash import FLAT

        near = near_earlier(bucket["group"], bucket["hash"], self.bits)
        near &= ~bucket["bad"] & (bucket["hash"] != FLAT)
        reasons = np.where(near, f"looks like another one, within {self.bits} bits", "").astype(object)
        reasons[bucket["bad"]] = "image cannot be decoded"
        return Verdict(reasons)


def pieces(hashes: np.ndarray, count: int) -> np.ndarray:
    """`count` groups of each hash [n, count] uint64: a piece of its bits, and which piece it is."""
    import numpy as np

    edges = np.linspace(0, 64, count + 1).astype(int)
    groups = [(hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1) for low, high in pairwise(edges)]
    mixed = [(group * np.uint64(count) + np.uint64(number)) for number, group in enumerate(groups)]
    return np.stack(mixed, axis=1) * np.uint64(0x9E3779B97F4A7C15) if count > 1 else np.stack(mixed, axis=1)


def near_earlier(group: np.ndarray, hashes: np.ndarray, bits: int) -> np.ndarray:
    """Which of these samples, in uid order, have an earlier one of their group within so many bits: bool [n]."""
    import numpy as np

    near = np.zeros(len(group), bool)
    by = np.argsort(group, kind="stable")
    _, first, sizes = np.unique(group[by], return_index=True, return_counts=True)
    for start, size in zip(first[sizes > 1].tolist(), sizes[sizes > 1].tolist()):
        members = by[start : start + size]
        values, place = np.unique(hashes[members], return_index=True)
        near[np.delete(members, place)] = True  # the same hash as an earlier one
        order = np.argsort(place)
        near[members[place[order]]] |= _near_before(values[order], bits)
    return near


def _near_before(hashes: np.ndarray, bits: int) -> np.ndarray:
    """Which of these different hashes [n] are within so many bits of one before them."""
    import numpy as np

    from orchestrator.curation.perceptual_hash import distances

    near, rows = np.zeros(len(hashes), bool), max(1, AT_ONCE // len(hashes))
    for start in range(0, len(hashes) if bits else 0, rows):
        here = np.arange(start, min(start + rows, len(hashes)))
        close = distances(hashes[here, None], hashes[None, : here[-1] + 1]) <= bits
        near[here] = (close & (np.arange(here[-1] + 1)[None] < here[:, None])).any(axis=1)
    return near
