"""The block order: every sample once an epoch, whatever the ranks, well mixed, from few blocks at a time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data import blocks
from orchestrator.data.blocks import MIXED, Blocked, cut

BYTES = 1000


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 10 * BYTES)


def order(size: int, batch: int, seed: int = 0) -> Blocked:
    """Samples of about `BYTES`: ten a block."""
    return Blocked(np.random.default_rng(1).integers(BYTES // 2, 3 * BYTES // 2, size), batch, seed)


SIZES = st.integers(0, 600).flatmap(lambda more: st.tuples(st.integers(1, 48), st.just(more)))


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(0, 3), st.integers(1, 4))
def test_every_stream_shows_its_part_of_the_epoch_once_and_together_they_show_all(case, seed, epochs):
    batch, more = case
    size = batch + more
    blocked = order(size, batch, seed)
    for epoch in range(epochs):
        seen = []
        for stream in range(blocked.streams):
            part = size * (stream + 1) // blocked.streams - size * stream // blocked.streams
            at = epoch * part
            while at < (epoch + 1) * part:
                window = blocked.window(stream, at)
                assert (window.epoch, window.first) == (epoch, at)
                seen += window.rows.tolist()
                at = window.last
        assert sorted(seen) == list(range(size))


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(0, 500), st.integers(1, 200), st.integers(1, 60))
def test_any_stretch_is_the_same_whatever_it_starts_at_and_however_it_is_cut(case, start, count, piece):
    batch, more = case
    epochs, rows = order(batch + more, batch).rows(0, start + count)
    other = order(batch + more, batch)
    cuts = [other.rows(at, min(piece, start + count - at)) for at in range(start, start + count, piece)]
    assert np.concatenate([r for _, r in cuts]).tolist() == rows[start:].tolist()
    assert np.concatenate([e for e, _ in cuts]).tolist() == epochs[start:].tolist()


@pytest.mark.parametrize(("batch", "streams"), [(64, 32), (96, 32), (100, 4), (16, 16), (7, 1), (4096, 32)])
def test_streams_follow_from_the_batch(batch, streams):
    assert order(5000, batch).streams == streams


@pytest.mark.parametrize("batch", [64, 100, 7])
def test_epochs_keep_step_over_the_whole_batch(batch):
    """After E epochs' worth of positions every sample was seen E times, but for one a stream and epoch."""
    size, epochs = 3001, 3
    blocked = order(size, batch)
    seen = Counter(blocked.rows(0, epochs * size // batch * batch)[1].tolist())
    off = sum(abs(seen[row] - epochs) for row in range(size))
    assert off <= epochs * blocked.streams + batch


@pytest.mark.parametrize("batch", [64, 100, 7])
def test_blocks_at_hand_are_few(batch):
    """At any moment a process that makes whole batches is inside of `MIXED` blocks, and its streams' edges."""
    blocked = order(6000, batch)
    for number in range(0, 6000 // batch, 5):
        windows = [blocked.window(stream, number * blocked.step) for stream in range(blocked.streams)]
        inside = [set(blocked.block_of(window.rows).tolist()) for window in windows]
        assert max(map(len, inside)) <= MIXED // blocked.streams
        assert sum(map(len, inside)) <= MIXED


@pytest.mark.parametrize("batch", [64, 100, 7])
def test_batches_are_drawn_from_everywhere_in_the_data(batch):
    """Place in the data and position in the order are uncorrelated; a batch covers the data as a random one does."""
    size = 20_000
    rows = order(size, batch).rows(0, size // batch * batch)[1]
    assert abs(np.corrcoef(np.arange(len(rows)), rows)[0, 1]) < 0.1
    assert (np.diff(rows) == 1).mean() < 0.15  # of ten in a block, mixed
    if batch >= 64:
        means = rows.reshape(-1, batch).mean(axis=1)
        assert means.std() < 2.5 * size / np.sqrt(12 * MIXED)
    blocks_a_batch = [len(set(block.tolist())) for block in (rows.reshape(-1, batch) // 10)]
    assert np.mean(blocks_a_batch) > 0.75 * min(batch, MIXED)


def test_epochs_and_seeds_differ():
    assert len({tuple(order(500, 50, seed).rows(at, 50)[1]) for seed in range(2) for at in (0, 500)}) == 4


def test_the_order_is_frozen():
    """Changing this order changes every training that reads blocks: it needs a new READ_RULE_VERSION."""
    epochs, rows = Blocked(np.full(40, BYTES), batch=6, seed=5).rows(36, 12)
    assert epochs.tolist() == [0, 0, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert rows.tolist() == [39, 13, 32, 2, 21, 24, 14, 39, 33, 22, 6, 23]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 30 * BYTES), min_size=1, max_size=300))
def test_blocks_are_as_equal_as_samples_allow(sizes):
    starts = cut(np.array(sizes))
    assert starts[0] == 0
    assert starts[-1] == len(sizes)
    assert (np.diff(starts) > 0).all()
    weights = np.add.reduceat(sizes, starts[:-1])
    assert weights.max() <= 1.5 * 10 * BYTES + 2 * max(sizes)
