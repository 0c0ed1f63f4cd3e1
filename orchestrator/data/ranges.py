"""Which byte ranges of a shard are read in one request: bytes nobody wants against requests saved.

A request has a price of its own, in time and in money, whatever it brings. So what lies between two wanted ranges may
be read along with them. Gaps up to `NEAR` are: those are the headers and captions between two images that are both
wanted. Beyond that the smallest gaps come first, for each saves one request, until they make up `SLACK` of the bytes
wanted. Where most of a stretch is wanted (`DENSE`) all of it is read in one go. A quarter of the samples, chosen at
random, so costs little more than a quarter of the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

NEAR = 4 << 10
"""Bytes that are always cheaper to read than to ask for what is behind them."""
SLACK = 0.1
"""Bytes of larger gaps read along, as a share of the bytes wanted."""
DENSE = 0.75
"""Share of a stretch from which on it is read whole."""


def merge(starts: Sequence[int] | np.ndarray, ends: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ranges [start, end) to request so that all of these are covered: firsts and lasts, ascending, int64."""
    import numpy as np  # planning imports this module and never gets here

    starts, ends = np.asarray(starts, np.int64), np.asarray(ends, np.int64)
    if not len(starts):
        return starts, ends
    order = np.argsort(starts, kind="stable")
    starts, reached = starts[order], np.maximum.accumulate(ends[order])
    gaps = starts[1:] - reached[:-1]
    far = np.flatnonzero(gaps > NEAR)
    stretch = int(reached[-1] - starts[0])
    wanted = stretch - int(gaps[far].sum())
    if wanted >= DENSE * stretch:
        return starts[:1], reached[-1:]
    smallest_first = far[np.argsort(gaps[far], kind="stable")]
    affordable = np.searchsorted(np.cumsum(gaps[smallest_first]), SLACK * wanted, side="right")
    cuts = np.sort(smallest_first[affordable:])
    return starts[np.append(0, cuts + 1)], reached[np.append(cuts, len(reached) - 1)]
