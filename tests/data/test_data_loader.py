"""The loader: what is seen is a function of position alone."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from data_shards import image, make_dataset, sample, write_samples, write_shard

from orchestrator.data.batch import Batch, Views
from orchestrator.data.captions import CaptionPolicy
from orchestrator.data.dataset import Dataset
from orchestrator.data.loader import Loader
from orchestrator.data.preprocess import Preprocess, Tokenizer
from orchestrator.data.transforms import Augment
from orchestrator.errors import DataError

BATCH = 8


def facts(number: int) -> dict:
    return {"captions": {"keywords": [f"word{number}", "thing"]}}


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    return make_dataset(tmp_path, str(write_samples(tmp_path / "pets", range(27), 3, facts)))


def batches(dataset: Dataset, count: int = 5, **options) -> list[Batch]:
    settings = {
        "batch": BATCH,
        "seed": 0,
        "views": Views(images=2, captions=2),
        "augment": Augment(scale=[0.5, 1.0], flip=0.5, background="random"),
        "captions": CaptionPolicy(slots={"original": 1.0, "keywords": 1.0}),
        "preprocess": Preprocess(image_size=8),
        "tokenizer": Tokenizer(),
    }
    with Loader(dataset, **{**settings, **options}) as loader:
        return list(itertools.islice(loader, count))


def same(one: Batch, other: Batch) -> bool:
    tensors = zip((*one.images, *one.tokens), (*other.images, *other.tokens), strict=True)
    return one.uids == other.uids and all(torch.equal(a, b) for a, b in tensors)


def test_batches_have_the_views_asked_for(dataset):
    (batch,) = batches(dataset, 1)
    assert [tuple(v.shape) for v in batch.images] == [(BATCH, 3, 8, 8)] * 2
    assert batch.images[0].dtype == torch.uint8
    assert [t.shape[0] for t in batch.tokens] == [BATCH] * 2
    assert not torch.equal(batch.images[0], batch.images[1])


@pytest.mark.parametrize("options", [{"threads": 3}, {"cache_bytes": 0}, {"cache_bytes": 1500, "threads": 2}])
def test_threads_and_cache_do_not_change_what_is_seen(dataset, options):
    assert all(map(same, batches(dataset, 9), batches(dataset, 9, **options)))


@pytest.mark.parametrize("size", [2, 4])
def test_the_parts_of_all_ranks_are_the_global_batch(dataset, size):
    whole = batches(dataset)
    parts = [batches(dataset, rank=rank, size=size) for rank in range(size)]
    for number, batch in enumerate(whole):
        ranks = [part[number] for part in parts]
        assert batch.uids == tuple(uid for rank in ranks for uid in rank.uids)
        for view in range(2):
            assert torch.equal(batch.images[view], torch.cat([rank.images[view] for rank in ranks]))
            width = batch.tokens[view].shape[1]
            padded = [
                torch.nn.functional.pad(rank.tokens[view], (0, width - rank.tokens[view].shape[1])) for rank in ranks
            ]
            assert torch.equal(batch.tokens[view], torch.cat(padded))


@pytest.mark.parametrize("start", [1, 3, 7])
def test_starting_anywhere_gives_what_would_have_come(dataset, start):
    assert all(map(same, batches(dataset, 10)[start:], batches(dataset, 10 - start, start=start * BATCH)))


def test_an_epoch_shows_every_sample_once_and_the_next_one_otherwise(dataset):
    uids = [uid for batch in batches(dataset, 7) for uid in batch.uids]
    assert sorted(uids[:27]) == sorted(dataset.uids)
    assert sorted(uids[27:54]) == sorted(dataset.uids)
    assert uids[:27] != uids[27:54]


def test_the_order_follows_the_data_and_not_their_shards(tmp_path, dataset):
    other = make_dataset(tmp_path / "other", str(write_samples(tmp_path / "other/pets", range(27)[::-1], 2, facts)))
    assert all(map(same, batches(dataset), batches(other)))


def test_seeds_differ(dataset):
    assert not same(batches(dataset, 1)[0], batches(dataset, 1, seed=1)[0])


def test_data_smaller_than_a_batch_are_refused(dataset):
    with pytest.raises(DataError, match=r"27 samples .* one batch of 28"):
        batches(dataset, batch=28)


@pytest.fixture
def damaged(tmp_path) -> Dataset:
    """27 samples of which two have an image that only looks like one."""
    folder = write_samples(tmp_path / "pets", range(25), 2, facts)
    broken = [(f"broken{n}", image(n + 60, size=64)[:80]) for n in range(2)]
    members = [
        (name, content)
        for key, data in broken
        for name, content in ((f"{key}.png", data), (f"{key}.txt", key.encode()))
    ]
    write_shard(folder / "00007.tar", [*members, *sample("late", 99, facts=facts(99))])
    return make_dataset(tmp_path, str(folder))


def test_an_undecodable_sample_stops_training_and_is_named(damaged):
    with pytest.raises(DataError, match=r"00007\.tar, key broken\d\): an image cannot be decoded"):
        batches(damaged, 7)


@pytest.mark.parametrize("options", [{"threads": 3}, {"cache_bytes": 0}])
def test_bad_samples_within_the_limit_are_replaced_the_same_way_by_everybody(damaged, options):
    allowed = batches(damaged, 7, max_bad_samples=2)
    assert all(map(same, allowed, batches(damaged, 7, max_bad_samples=2, **options)))
    halves = [batches(damaged, 7, max_bad_samples=2, rank=rank, size=2) for rank in range(2)]
    assert [b.uids for b in allowed] == [(*a.uids, *b.uids) for a, b in zip(*halves)]
    bad = {s.uid for s in damaged.read(range(len(damaged))) if "broken" in s.captions[0].text}
    seen = {uid for batch in allowed for uid in batch.uids}
    assert (len(bad), seen & bad, len(seen)) == (2, set(), 26)


def test_bad_samples_are_counted_once_each(damaged):
    with Loader(
        damaged,
        batch=BATCH,
        seed=0,
        views=Views(),
        augment=Augment(),
        captions=CaptionPolicy(),
        preprocess=Preprocess(image_size=8),
        tokenizer=Tokenizer(),
        max_bad_samples=2,
    ) as loader:
        list(itertools.islice(loader, 20))
        assert len(loader.bad_samples) == 2
        assert loader.wait_s > 0
        assert json.dumps(loader.bad_samples)
