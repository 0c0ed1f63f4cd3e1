"""`read: auto`, and what block reading transfers from an object store."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from data_shards import make_dataset, open_store, write_shard
from PIL import Image
from s3_proxy import proxied
from test_data_loader import SETTINGS

from orchestrator.data import blocks, read
from orchestrator.data.batch import Views
from orchestrator.data.dataset import Dataset
from orchestrator.data.loader import Loader
from orchestrator.io.storage import Storage

SAMPLES, SIDE = 600, 56
"""Noise: pictures of 9 kB or so."""


def members() -> list[tuple[str, bytes]]:
    random, found = np.random.default_rng(0), []
    for number in range(SAMPLES):
        stream = io.BytesIO()
        side = SIDE + int(random.integers(-12, 12))
        Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8)).save(stream, "PNG")
        found += [(f"{number:05d}.png", stream.getvalue()), (f"{number:05d}.txt", f"noise {number}".encode())]
    return found


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("noise")
    all_members = members()
    for shard in range(3):
        write_shard(folder / f"shards/{shard:05d}.tar", all_members[shard * 400 : (shard + 1) * 400])
    return make_dataset(folder, str(folder / "shards"))


def a_share(dataset: Dataset, share: float) -> Dataset:
    return dataset.take(np.flatnonzero(np.random.default_rng(1).random(len(dataset)) < share))


@pytest.mark.parametrize(
    ("share", "wanted", "exact_bytes", "mode", "why"),
    [
        (1.0, "auto", 4 << 30, "exact", "GB of images, at most 4.29"),
        (1.0, "auto", 0, "block", "enough"),
        (0.25, "auto", 0, "block", "enough"),
        (0.02, "auto", 0, "exact", "too few"),
        (1.0, "block", 4 << 30, "block", "the recipe says so"),
        (1.0, "exact", 0, "exact", "the recipe says so"),
    ],
)
def test_the_order_follows_from_size_and_density(noise, monkeypatch, share, wanted, exact_bytes, mode, why):
    monkeypatch.setattr(read, "EXACT_BYTES", exact_bytes)
    reading = read.choose(wanted, a_share(noise, share))
    assert reading.mode == mode
    assert why in reading.why


def test_an_epoch_over_a_quarter_of_the_samples_reads_less_than_three_tenths_of_the_bytes_on_s3(
    s3_root, s3_server, tmp_path, monkeypatch
):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 150_000)
    monkeypatch.setattr(blocks, "MIXED", 2)
    path = write_shard(tmp_path / "00000.tar", members())
    Storage.open(f"{s3_root}/pool").put("00000.tar", path)
    with proxied(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        quarter = a_share(make_dataset(tmp_path, f"{s3_root}/pool", open_store(tmp_path / "store")), 0.25)
        indexed, asked = proxy.sent, proxy.count("GET .*00000.tar")
        epochs = 12
        settings = {**SETTINGS, "views": Views(), "batch": 10}
        with Loader(quarter, **settings, read="block") as loader:
            for _ in itertools.islice(loader, epochs * len(quarter) // 10):
                pass
        num_bytes, requests = loader.traffic  # with what was under way at the end
        on_the_wire = (proxy.sent - indexed) / epochs
        assert proxy.sent - indexed == pytest.approx(num_bytes, rel=0.01)
        assert proxy.count("GET .*00000.tar") - asked == requests
    assert on_the_wire < 0.3 * path.stat().st_size
    assert requests / epochs < 0.85 * len(quarter)
