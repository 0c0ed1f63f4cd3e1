"""Reading shards, once through: our block reading beside the webdataset library and Ray Data's own `read_webdataset`.

All read the same shards with as many workers: webdataset in processes of a torch DataLoader, Ray in as many CPUs of a
cluster of its own (`decoder=None`: it passes bytes, as we do), ours in threads and, in a row of its own, in loader
processes. What a sample is made into:

- raw:      encoded bytes and caption, for the consumer to hold;
- 224, 64:  pixels [3, S, S] uint8 of a random crop of 90 to 100% of the area, and the caption: theirs by Pillow and
            torchvision's RandomResizedCrop (bicubic), as open_clip_train does it; ours is the training loader.

Ours reads in shuffled block order and checks every image against its digest; theirs read from front to back. A round
measures one side after the other in one process, after a pass that warms it up; ratios are of samples/s to the faster
of the two others in the same round. With `--s3` the shards are also put on an S3 server (SeaweedFS, here), and an
epoch over a random quarter is read from there, in both orders: bytes, requests, seconds.

    python -m benchmarks.read --rounds 5 --json read.json
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import chaos_servers, rounds, shards
from orchestrator.data.dataset import Dataset

SIDES = ("webdataset", "Ray Data", "ours, threads", "ours, processes")
BATCH = 128
QUARTER = 0.25
EPOCHS = 8
"""From S3, so that what is read ahead of the last one hardly counts."""


def dataset(folder: Path, work: Path) -> Dataset:
    """The shards as our `Dataset`, in a loader process too."""
    return shards.dataset(folder, work)


def cropped(size: int) -> Callable[[bytes], np.ndarray]:
    """What open_clip_train makes of an image, kept as bytes."""
    from PIL import Image

    from orchestrator.data.torchvision_ops import declare_missing_torchvision_operators

    declare_missing_torchvision_operators()
    from torchvision.transforms import InterpolationMode, RandomResizedCrop

    crop = RandomResizedCrop(size, scale=(0.9, 1.0), interpolation=InterpolationMode.BICUBIC)
    return lambda data: np.asarray(crop(Image.open(io.BytesIO(data)).convert("RGB"))).transpose(2, 0, 1)


class _Made:
    """A sample of webdataset, in its worker process. Picklable."""

    def __init__(self, size: int) -> None:
        self._size, self._crop = size, None

    def __call__(self, sample: dict[str, Any]) -> tuple[Any, str]:
        if self._size and self._crop is None:
            self._crop = cropped(self._size)
        image = sample["jpg"] if self._crop is None else self._crop(sample["jpg"])
        return image, sample["txt"].decode()


def by_webdataset(options: Namespace) -> Callable[[], int]:
    """One pass of the webdataset library, in batches; the number of samples."""
    import webdataset
    from torch.utils.data import DataLoader

    urls = [str(path) for path in sorted(options.shards.resolve().glob("*.tar"))]
    stages = webdataset.WebDataset(urls, shardshuffle=False, workersplitter=webdataset.split_by_worker)
    batches = stages.map(_Made(options.size)).batched(BATCH, partial=True, collation_fn=_pairs)
    loader = DataLoader(batches, batch_size=None, num_workers=options.workers, persistent_workers=True)
    return lambda: sum(len(texts) for _, texts in loader)


def _pairs(samples: list[tuple[Any, str]]) -> tuple[Any, list[str]]:
    images, texts = zip(*samples)
    return (np.stack(images) if isinstance(images[0], np.ndarray) else list(images)), list(texts)


def by_ray(options: Namespace) -> Callable[[], int]:
    """One pass of Ray Data's reader, in batches; the number of samples."""
    import ray

    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray spells it so; its workers give way to all others)
    ray.init(num_cpus=options.workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    paths, size = [str(path) for path in sorted(options.shards.resolve().glob("*.tar"))], options.size

    def made(batch: dict[str, Any]) -> dict[str, Any]:
        crop = cropped(size)
        return {"image": np.stack([crop(data) for data in batch["jpg"]]), "txt": batch["txt"]}

    def read() -> int:
        data = ray.data.read_webdataset(paths, decoder=None, suffixes=["jpg", "txt"])
        if size:
            data = data.map_batches(made, batch_size=BATCH)
        return sum(len(batch["txt"]) for batch in data.iter_batches(batch_size=BATCH))

    return read


def by_us(options: Namespace, processes: bool) -> Callable[[], int]:
    """One epoch of ours, in batches; the number of samples."""
    data = dataset(options.shards, options.work)
    if not options.size:
        return partial(_raw, data, options.workers)
    from orchestrator.data.batch import Views
    from orchestrator.data.captions import CaptionPolicy
    from orchestrator.data.loader import Loader
    from orchestrator.data.preprocess import Preprocess, Tokenizer
    from orchestrator.data.transforms import Augment

    loader = Loader(
        data,
        batch=BATCH,
        seed=0,
        views=Views(captions=0),
        augment=Augment(),
        captions=CaptionPolicy(),
        preprocess=Preprocess(options.size),
        tokenizer=Tokenizer(),
        read="block",
        threads=options.workers,
        processes=options.workers if processes else 0,
        reopen=partial(dataset, options.shards.resolve(), options.work.resolve()),
    )
    batches = iter(loader)
    return lambda: sum(len(batch) for batch in itertools.islice(batches, len(data) // BATCH))


def _raw(data: Dataset, workers: int) -> int:
    """Every sample of an epoch in block order, as the loader's readers have them."""
    from orchestrator.data.ahead import Ahead
    from orchestrator.data.blocks import Blocked
    from orchestrator.data.read import stored_order, stored_sizes

    stored = stored_order(data)
    order = Blocked(stored_sizes(data, stored), BATCH, seed=0)
    ahead = Ahead(data, stored, order, range(BATCH), readers=workers)
    seen = 0
    for start in range(0, len(data) // BATCH * BATCH, BATCH):
        ahead.reach(start)
        seen += len(ahead.samples(start, BATCH))
        ahead.passed(start + BATCH)
    ahead.close()
    return seen


def measure(read: Callable[[], int]) -> list[float]:
    """Samples a second of one pass, and processor seconds a sample, of this process and all it has started."""
    began, cpu = time.perf_counter(), _cpu_seconds()
    samples = read()
    return [samples / (time.perf_counter() - began), (_cpu_seconds() - cpu) / samples]


def _cpu_seconds() -> float:
    import psutil

    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(psutil.Error):  # it just ended
            total += sum(process.cpu_times()[:2])
    return total


def run(options: Namespace) -> dict[str, list[list[float]]]:
    """All rounds of one size and number of workers, in this process."""
    import torch

    torch.set_num_threads(1)
    sides = {"webdataset": by_webdataset(options)}
    sides["webdataset"]()  # its workers are forked before there are threads
    sides |= {"Ray Data": by_ray(options), "ours, threads": by_us(options, processes=False)}
    if options.size:
        sides["ours, processes"] = by_us(options, processes=True)
    figures: dict[str, list[list[float]]] = {side: [] for side in sides}
    for read in sides.values():
        read()
    for _ in range(options.rounds):
        for side, read in sides.items():
            figures[side].append(measure(read))
    return figures


def summary(figures: dict[str, list[list[float]]]) -> dict[str, dict[str, Any]]:
    """Medians, and ratios to the faster of the two others, round by round."""
    speeds = {side: [speed for speed, _ in measured] for side, measured in figures.items()}
    faster = [max(pair) for pair in zip(speeds["webdataset"], speeds["Ray Data"])]
    return {
        side: {
            "samples_per_s": statistics.median(speeds[side]),
            "samples_per_s_rounds": speeds[side],
            "ratio": statistics.median(mine / other for mine, other in zip(speeds[side], faster)),
            "ratio_rounds": [mine / other for mine, other in zip(speeds[side], faster)],
            "cpu_s_per_sample": statistics.median(cpu for _, cpu in measured),
        }
        for side, measured in figures.items()
    }


def quarter(options: Namespace) -> dict[str, dict[str, float]]:
    """An epoch over a random quarter of the samples, read from S3, by order: bytes, requests, seconds."""
    from orchestrator.data.bad import Tally
    from orchestrator.data.batch import Views
    from orchestrator.data.captions import CaptionPolicy
    from orchestrator.data.loader import Loader
    from orchestrator.data.preprocess import Preprocess, Tokenizer
    from orchestrator.data.transforms import Augment
    from orchestrator.io.storage import Storage

    address = f"s3://{chaos_servers.BUCKET}/shards"
    place = Storage.open(address)
    paths = sorted(options.shards.resolve().glob("*.tar"))
    for path in paths:
        place.put(path.name, path)
    whole = shards.dataset(address, options.work / "s3")
    total = sum(path.stat().st_size for path in paths)
    some = whole.take(np.flatnonzero(np.random.default_rng(0).random(len(whole)) < QUARTER))
    found: dict[str, dict[str, float]] = {}
    for read in ("block", "exact"):
        before = some.traffic.bytes, some.traffic.requests
        loader = Loader(
            some,
            batch=BATCH,
            seed=0,
            views=Views(),
            augment=Augment(),
            captions=CaptionPolicy(),
            preprocess=Preprocess(64),
            tokenizer=Tokenizer(),
            read=read,
            threads=2,
            tally=Tally("bench", len(some)),
            cache_bytes=0,
            prefetch_bytes=0,
        )
        began = time.perf_counter()
        with loader:
            for _ in itertools.islice(loader, EPOCHS * len(some) // BATCH):
                pass
            seconds = (time.perf_counter() - began) / EPOCHS
        num_bytes, requests = (some.traffic.bytes - before[0]) / EPOCHS, (some.traffic.requests - before[1]) / EPOCHS
        found[read] = {
            "samples": len(some),
            "share_of_samples": len(some) / len(whole),
            "share_of_bytes": num_bytes / total,
            "requests": requests,
            "samples_a_request": len(some) / requests,
            "seconds": seconds,
        }
    return found


def show(title: str, results: dict[str, dict[str, dict[str, Any]]], s3: dict[str, dict[str, float]]) -> None:
    """Print one table of all tasks, and the quarter from S3."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in ("task, workers", "side", "samples/s", "to the faster other", "rounds", "CPU ms a sample"):
        table.add_column(name, justify="right" if name not in ("side", "task, workers") else "left", no_wrap=True)
    for setting, sides in results.items():
        for side, figures in sides.items():
            ratios = sorted(figures["ratio_rounds"])
            table.add_row(
                setting if side == SIDES[0] else "",
                side,
                f"{figures['samples_per_s']:,.0f}",
                f"{figures['ratio']:.2f}",
                f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
                f"{1000 * figures['cpu_s_per_sample']:.2f}",
            )
    console = Console(width=119)
    console.print(table)
    for order, facts in s3.items():
        shares = f"{facts['share_of_samples']:.1%} of the samples, {facts['share_of_bytes']:.1%} of the bytes"
        cost = f"{facts['requests']:,.0f} requests ({facts['samples_a_request']:.2f} samples each)"
        console.print(f"S3, {order}: {shares}, {cost}, {facts['seconds']:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    shards.add_arguments(parser)
    rounds.add_arguments(parser, rounds=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[0, 224, 64], help="pixels; 0: encoded bytes")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="processes of theirs, threads of ours")
    parser.add_argument("--s3", action="store_true", help="read a quarter from an S3 server, too")
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:  # a child, for one size and number of workers
        options.size, options.workers = options.sizes[0], options.workers[0]
        rounds.write(options.only, run(options))
        return
    shards.build(options.shards, options.source, options.limit)
    results = {}
    for size, workers in itertools.product(options.sizes, options.workers):
        results[f"{size or 'raw'}, {workers}"] = one = summary(_child(options, size, workers))
        print(f"{size or 'raw'}, {workers} workers: {one['ours, threads']['ratio']:.2f} times the faster other")
    s3 = _with_s3(options) if options.s3 else {}
    show(f"Reading {shards.num_samples(options.shards):,} JPEG pictures once", results, s3)
    rounds.write(options.json, {"machine": rounds.machine(options.threads), "results": results, "s3": s3})


def _with_s3(options: Namespace) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        server = chaos_servers.s3(Path(folder) / "s3")
        server.start()
        try:
            os.environ.update(chaos_servers.s3_environment(server.url))
            return quarter(options)
        finally:
            server.kill()


def _child(options: Namespace, size: int, workers: int) -> dict[str, list[list[float]]]:
    options.work.mkdir(parents=True, exist_ok=True)
    answer = options.work.resolve() / f"read-{size}-{workers}.json"
    wanted = {
        "--shards": options.shards.resolve(),
        "--work": options.work.resolve(),
        "--rounds": options.rounds,
        "--sizes": size,
        "--workers": workers,
        "--only": answer,
    }
    rounds.child(["-m", "benchmarks.read", *(str(part) for pair in wanted.items() for part in pair)], 1, Path.cwd())
    return json.loads(answer.read_text())


if __name__ == "__main__":
    from benchmarks import read  # under its own name, by which loader processes find what they are given

    read.main()
