"""The loader: what is seen is a function of position alone."""

from __future__ import annotations

import io
import itertools
import json
from collections import defaultdict
from contextlib import nullcontext

import pytest
import torch
from data_shards import image, make_dataset, sample, write_samples, write_shard
from PIL import Image

from orchestrator.data import blocks
from orchestrator.data.bad import Tally
from orchestrator.data.batch import Batch, Views
from orchestrator.data.captions import CaptionPolicy
from orchestrator.data.dataset import Dataset
from orchestrator.data.loader import Loader
from orchestrator.data.preprocess import Preprocess, Tokenizer
from orchestrator.data.transforms import Augment
from orchestrator.data.views import Shown, ViewMaker
from orchestrator.errors import DataError

BATCH = 8


def facts(number: int) -> dict:
    return {"captions": {"keywords": [f"word{number}", "thing"]}}


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    return make_dataset(tmp_path, str(write_samples(tmp_path / "pets", range(27), 3, facts)))


SETTINGS = {
    "batch": BATCH,
    "seed": 0,
    "views": Views(images=2, captions=2),
    "augment": Augment(scale=[0.5, 1.0], flip=0.5, background="random"),
    "captions": CaptionPolicy(slots={"original": 1.0, "keywords": 1.0}),
    "preprocess": Preprocess(image_size=8),
    "tokenizer": Tokenizer(),
}


ORDERS = pytest.mark.parametrize("read", ["exact", "block"])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Of a few samples each, so that data of this size have several."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 300)


def batches(dataset: Dataset, count: int = 5, **options) -> list[Batch]:
    with Loader(dataset, **{**SETTINGS, **options}) as loader:
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


@ORDERS
@pytest.mark.parametrize("options", [{"threads": 3}, {"cache_bytes": 0}, {"cache_bytes": 1500, "threads": 2}])
def test_threads_and_cache_do_not_change_what_is_seen(dataset, options, read):
    assert all(map(same, batches(dataset, 9, read=read), batches(dataset, 9, read=read, **options)))


@ORDERS
@pytest.mark.parametrize("size", [2, 4])
def test_the_parts_of_all_ranks_are_the_global_batch(dataset, size, read):
    whole = batches(dataset, read=read)
    parts = [batches(dataset, read=read, rank=rank, size=size) for rank in range(size)]
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


@ORDERS
@pytest.mark.parametrize("start", [1, 3, 7])
def test_starting_anywhere_gives_what_would_have_come(dataset, start, read):
    whole = batches(dataset, 10, read=read)
    assert all(map(same, whole[start:], batches(dataset, 10 - start, read=read, start=start * BATCH)))


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
    with pytest.raises(DataError, match=r"1 of the 28 .* 0 allowed .*cannot be decoded: 1 .*00007\.tar, key broken\d"):
        batches(damaged, 7)


@ORDERS
@pytest.mark.parametrize("options", [{"threads": 3}, {"cache_bytes": 0}])
def test_bad_samples_within_the_limit_are_replaced_the_same_way_by_everybody(damaged, options, read):
    allowed = batches(damaged, 7, read=read, tally=Tally("pets", 28, 2))
    assert all(map(same, allowed, batches(damaged, 7, read=read, tally=Tally("pets", 28, 2), **options)))
    halves = [batches(damaged, 7, read=read, tally=Tally("pets", 28, 2), rank=rank, size=2) for rank in range(2)]
    assert [b.uids for b in allowed] == [(*a.uids, *b.uids) for a, b in zip(*halves)]
    bad = {s.uid for s in damaged.read(range(len(damaged))) if "broken" in s.captions[0].text}
    seen = {uid for batch in allowed for uid in batch.uids}
    assert (len(bad), seen & bad, len(seen)) == (2, set(), 26)


@pytest.fixture
def photographs(tmp_path) -> Dataset:
    """200 samples, every other one a JPEG larger than the views: more than a thread prepares at a time."""
    members = []
    for number in range(200):
        picture = Image.new("RGB", (20 + number % 7, 24), (number, 255 - number, 99))
        picture.paste((number % 5 * 50, 7, 200), (number % 16, 4, 20, 16))
        stream = io.BytesIO()
        picture.save(stream, "JPEG" if number % 2 else "PNG")
        name = f"{number:04d}"
        members += [(f"{name}.{'jpg' if number % 2 else 'png'}", stream.getvalue()), (f"{name}.txt", name.encode())]
    write_shard(tmp_path / "photographs/00000.tar", members)
    return make_dataset(tmp_path, str(tmp_path / "photographs"))


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 3},
        {"cache_bytes": 0, "threads": 2},
        {"cache_bytes": 20_000},
        {"prefetch_bytes": 0},
        {"prefetch_bytes": 200_000, "threads": 4},
    ],
)
def test_threads_cache_and_memory_do_not_change_what_is_seen_of_photographs(photographs, options):
    wanted = batches(photographs, 4, batch=150)
    assert all(map(same, wanted, batches(photographs, 4, batch=150, **options)))
    halves = [batches(photographs, 4, batch=150, rank=rank, size=2) for rank in range(2)]
    assert all(torch.equal(w.images[1], torch.cat([h.images[1] for h in pair])) for w, *pair in zip(wanted, *halves))


@pytest.mark.parametrize(("prefetch_bytes", "ahead"), [(0, 1), (2 * 2 * BATCH * 3 * 8 * 8, 2), (1 << 30, 4)])
def test_batches_ahead_are_bounded_in_bytes_and_number(dataset, monkeypatch, prefetch_bytes, ahead):
    """Counted while the consumer has the first batch: those begun, less that one."""
    begun = []
    monkeypatch.setattr(
        Loader, "_begin", lambda self, start, begin=Loader._begin: begun.append(start) or begin(self, start)
    )
    batches(dataset, 1, threads=3, prefetch_bytes=prefetch_bytes)
    assert begun == [BATCH * number for number in range(ahead + 1)]


def test_a_batch_that_is_kept_is_never_written_again(dataset):
    kept = batches(dataset, 30)
    copies = [(batch.images[0].clone(), batch.images[1].clone()) for batch in kept]
    with_others_dropped = [batch.images[0][2:4] for batch in batches(dataset, 30)]
    assert all(torch.equal(b.images[v], c[v]) for b, c in zip(kept, copies) for v in range(2))
    assert all(torch.equal(piece, b.images[0][2:4]) for piece, b in zip(with_others_dropped, kept))


def test_pixels_memory_is_used_again(dataset):
    places = set()
    with Loader(dataset, **{**SETTINGS, "views": Views()}) as loader:
        for batch in itertools.islice(loader, 40):
            places.add(batch.images[0].data_ptr())
            del batch
    assert len(places) < 10


class Stored:
    """Features of three stored views: the view's number, and the first byte of the uid."""

    num_views, seed = 3, 77
    augment = Augment(scale=[0.3, 0.6], flip=0.5)
    captions = CaptionPolicy(slots={"keywords": 1.0})

    def features(self, uids, views):
        values = [[float(view), float(int(uid[:2], 16))] for uid, view in zip(uids, views)]
        return {"image": torch.tensor(values), "text": -torch.tensor(values)}


def test_stored_views_decide_what_is_seen_and_come_with_their_features(dataset):
    stored = Stored()
    maker = ViewMaker(stored.seed, stored.augment, stored.captions, Preprocess(image_size=8), Tokenizer())
    rows = {uid: row for row, uid in enumerate(dataset.uids)}
    views: dict[str, list[int]] = defaultdict(list)
    for batch in batches(dataset, 12, stored=stored, threads=2, seed=5):
        assert set(batch.embeddings) == {"image", "text"}
        numbers = [int(number) for number in batch.embeddings["image"][:, 0]]
        assert torch.equal(batch.embeddings["image"], -batch.embeddings["text"])
        samples = dataset.read([rows[uid] for uid in batch.uids])
        shown = [Shown(n, s.uid, maker.decode(s.image), s.captions) for n, s in zip(numbers, samples)]
        for view in range(2):
            assert torch.equal(batch.images[view], maker.images(shown, view))
            assert torch.equal(batch.tokens[view], maker.tokens(shown, view))
        for uid, number in zip(batch.uids, numbers):
            views[uid].append(number)
    assert {number for seen in views.values() for number in seen} == {0, 1, 2}


def test_blocks_are_read_once_an_epoch_and_forgotten(photographs, monkeypatch):
    """Ranges of the shard, whatever the batch; held are the windows at hand."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2000)
    monkeypatch.setattr(blocks, "MIXED", 4)
    epochs, size = 4, len(photographs)
    with Loader(photographs, **{**SETTINGS, "batch": 20}, read="block") as loader:
        held = []
        for _ in itertools.islice(loader, epochs * size // 20):
            held.append(sum(len(part.result()) for parts in loader._maker._ahead._held.values() for part in parts))
        _, requests = loader.traffic
    assert epochs * size <= requests <= (epochs + 1) * size
    assert max(held) < 2 * size / 3  # six batches are under way


def test_the_order_with_stored_views_is_that_without(dataset):
    pairs = zip(batches(dataset, 5), batches(dataset, 5, stored=Stored()))
    assert all(plain.uids == with_features.uids for plain, with_features in pairs)


def counting(dataset: Dataset, number: int, max_bad: float = 2, **options) -> Tally:
    """Take some batches; what was counted."""
    tally = Tally(dataset.name, len(dataset), max_bad)
    batches(dataset, number, tally=tally, **options)
    return tally


def test_bad_samples_are_counted_once_each_by_reason(damaged):
    found = counting(damaged, 20).found.as_json()
    assert found["counts"] == {"image cannot be decoded": 2}
    (examples,) = found["examples"].values()
    assert all("(00007.tar, key broken" in example and "truncated" in example for example in examples)


def bad_by_batch(dataset: Dataset) -> list[int]:
    """How many bad samples were met up to each batch, looked up in the order itself."""
    tally, counts = Tally(dataset.name, len(dataset), 2), []
    with Loader(dataset, **SETTINGS, tally=tally) as loader:
        for _ in itertools.islice(loader, 7):
            counts.append(tally.found.counts.total())
    return counts


def test_what_is_made_ahead_and_never_seen_does_not_count(damaged):
    wanted = bad_by_batch(damaged)
    assert 0 in wanted or wanted[-1] > wanted[0], "the bad samples are not all in the first batch"
    for number, bad in enumerate(wanted, 1):
        assert counting(damaged, number, max_bad=bad, threads=4).found.counts.total() == bad


def test_a_tally_goes_on_where_another_stopped(damaged):
    before = counting(damaged, 20)
    after = Tally(damaged.name, len(damaged), 2)
    after.restore(json.loads(json.dumps(before.state())))
    batches(damaged, 20, tally=after)
    assert after.found.as_json() == before.found.as_json()


@pytest.mark.parametrize(("max_bad", "ok"), [(0.08, True), (0.07, False), (2, True), (1, False)])
def test_the_limit_is_a_count_or_a_share_of_the_samples(damaged, max_bad, ok):
    with nullcontext() if ok else pytest.raises(DataError, match="repair the shards, or raise `max_bad`"):
        counting(damaged, 7, max_bad)


@pytest.mark.parametrize("max_bad", [2, 100])
def test_data_of_bad_images_alone_end_with_one_error(tmp_path, max_bad):
    members = [m for n in range(BATCH) for m in ((f"{n}.png", image(n, size=64)[:80]), (f"{n}.txt", b"text"))]
    write_shard(tmp_path / "bad/00000.tar", members)
    with pytest.raises(DataError, match=r"3 of the 8 .* 2 allowed" if max_bad == 2 else "no sample of 'bad'"):
        counting(make_dataset(tmp_path, str(tmp_path / "bad")), 1, max_bad)


def test_replacing_a_bad_sample_is_the_same_from_any_start(damaged):
    whole = batches(damaged, 12, tally=Tally("pets", 28, 2))
    for start in (1, 4, 9):
        rest = batches(damaged, 12 - start, tally=Tally("pets", 28, 2), start=start * BATCH)
        assert all(map(same, whole[start:], rest))
