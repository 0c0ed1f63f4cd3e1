"""Merged ranges: everything wanted is covered, at a bounded price in bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.ranges import DENSE, NEAR, SLACK, merge

PAIRS = st.lists(st.tuples(st.integers(0, 400_000), st.integers(1, 20_000)), min_size=1, max_size=80)


@settings(max_examples=200, deadline=None)
@given(PAIRS)
def test_all_that_is_wanted_is_covered_and_little_else(pairs):
    starts, ends = [s for s, _ in pairs], [s + n for s, n in pairs]
    firsts, lasts = merge(starts, ends)
    assert (firsts[1:] > lasts[:-1]).all()
    assert all(any(first <= s and e <= last for first, last in zip(firsts, lasts)) for s, e in zip(starts, ends))
    covered = np.zeros(max(ends) + 1, bool)
    for start, end in zip(starts, ends):
        covered[start:end] = True
    edges = np.flatnonzero(np.diff(np.concatenate([[0], covered, [0]])))
    near = [(a, b) for a, b in zip(edges[1:-1:2], edges[2::2]) if b - a <= NEAR]
    wanted = int(covered.sum()) + sum(b - a for a, b in near)
    read = int((lasts - firsts).sum())
    assert read <= wanted * (1 + SLACK) or (len(firsts) == 1 and read <= wanted / DENSE)


@pytest.mark.parametrize(
    ("what", "starts", "ends", "firsts"),
    [
        ("nothing", [], [], []),
        ("neighbours", [0, 1000, 9000], [900, 8000, 9900], [0]),
        ("far apart", [0, 1 << 20, 1 << 24], [9000, (1 << 20) + 9000, (1 << 24) + 9000], [0, 1 << 20, 1 << 24]),
        ("the smallest gap first", [0, 105_000, 400_000], [100_000, 200_000, 500_000], [0, 400_000]),
        ("mostly wanted", [0, 40_000, 80_000], [32_000, 72_000, 112_000], [0]),
        ("repeated, in any order", [500_000, 0, 500_000], [500_100, 100, 500_100], [0, 500_000]),
    ],
)
def test_what_is_requested(what, starts, ends, firsts):
    assert merge(starts, ends)[0].tolist() == firsts


@pytest.mark.parametrize(
    ("share", "most_bytes", "most_requests"), [(1.0, 1.0, 0.001), (0.25, 0.29, 0.65), (0.9, 1.0, 0.001)]
)
def test_a_random_selection_costs_its_share_of_the_bytes_and_fewer_requests_than_samples(
    share, most_bytes, most_requests
):
    """Photographs of 25 kB or so, each followed by a caption."""
    random = np.random.default_rng(0)
    sizes = random.lognormal(np.log(22_000), 0.5, 3000).astype(np.int64)
    ends = np.cumsum(sizes + 2048) - 2048
    wanted = random.random(3000) < share
    firsts, lasts = merge((ends - sizes)[wanted], ends[wanted])
    assert (lasts - firsts).sum() <= most_bytes * ends[-1]
    assert len(firsts) <= max(1, most_requests * wanted.sum())
