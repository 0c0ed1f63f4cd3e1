"""The order of samples: a permutation an epoch, from any position, whatever the ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.sampler import Shuffled, permute


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 700), st.integers(0, 3), st.integers(0, 3))
def test_every_epoch_is_a_permutation(size, seed, epoch):
    _, rows = Shuffled(size, seed).rows(epoch * size, size)
    assert sorted(rows.tolist()) == list(range(size))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 50), st.integers(0, 200), st.integers(0, 120), st.integers(1, 40))
def test_any_stretch_is_the_same_whatever_it_starts_at_and_however_it_is_cut(size, start, count, piece):
    order = Shuffled(size, seed=3)
    epochs, rows = order.rows(0, start + count)
    assert (epochs == np.arange(start + count) // size).all()
    cuts = [order.rows(at, min(piece, start + count - at)) for at in range(start, start + count, piece)]
    assert np.concatenate([r for _, r in cuts] or [rows[:0]]).tolist() == rows[start:].tolist()


def test_epochs_and_seeds_differ():
    orders = {tuple(permute(np.arange(100), 100, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@pytest.mark.parametrize("size", [10, 1000, 3528])
def test_rows_are_spread_evenly_over_positions(size):
    """Over many epochs each position sees all rows alike; neighbours are as rare as by chance."""
    orders = np.stack([permute(np.arange(size), size, seed=0, epoch=e) for e in range(400)])
    centre, deviation = (size - 1) / 2, np.sqrt((size**2 - 1) / 12 / 400)
    assert np.abs(orders.mean(axis=0) - centre).max() < 5 * deviation
    following = (orders[:, 1:] == orders[:, :-1] + 1).sum(axis=1).mean()  # expected (size - 1) / size
    assert abs(following - (size - 1) / size) < 0.3
    early = np.corrcoef(orders[:-1, : size // 2].ravel(), orders[1:, : size // 2].ravel())[0, 1]
    assert abs(early) < 0.1


def test_the_order_is_frozen():
    """Changing this order changes every training: it needs a new version of the training loop."""
    assert Shuffled(11, seed=5).rows(0, 14)[1].tolist() == [5, 0, 6, 3, 1, 8, 10, 4, 2, 7, 9, 2, 8, 1]


def test_one_position_of_billions_costs_nothing():
    _, rows = Shuffled(2_300_000_000, seed=0).rows(5_000_000_000, 8)
    assert len(set(rows.tolist())) == 8
    assert rows.max() < 2_300_000_000
