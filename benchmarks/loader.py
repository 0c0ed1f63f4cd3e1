"""The loader alone, beside open_clip_train's: read, decode, augment, tokenise; no model.

Both read the same shards with as many workers (open_clip_train: processes, ours: threads) and the same augmentation
(CLIP's: crops of 90 to 100% of the area, bicubic). A round measures one side after the other in one process, when the
others' buffers are full and they rest; rates are of the steady state. Rows of ours:

- cold:         nothing kept between epochs, neither decoded images nor captions' tokens;
- cold, float:  the same, and its uint8 pixels normalised to float32 by the consumer, as open_clip_train's workers do
                (a training does it with its own threads, or on the GPU);
- warm:         as a training has it, after one epoch: decoded images and tokens are kept in memory.

    python -m benchmarks.loader --rounds 5 --json loader.json
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import itertools
import json
import statistics
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import rounds, shards

PEER = "open_clip_train"
SIDES = (PEER, "cold", "cold, float", "warm")
MODEL = "ViT-S-32"
PREFETCHED = 6
"""Batches that may lie ready before a measurement; they are not counted."""


def theirs(options: Namespace) -> Iterator[Any]:
    """Endless batches of open_clip_train's loader."""
    from orchestrator.models.open_clip_bridge import open_clip

    _, preprocess, _ = open_clip().create_model_and_transforms(MODEL, force_image_size=options.size)
    data = importlib.import_module("open_clip_train.data")
    if "eof_value" in inspect.signature(data.tar_file_expander).parameters:  # a mark that it stumbles over
        data.tar_file_expander = functools.partial(data.tar_file_expander, eof_value=None)
    settings = Namespace(
        train_data=shards.pattern(sorted(options.shards.resolve().glob("*.tar"))),
        train_num_samples=1 << 40,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        batch_size=options.batch,
        workers=options.workers,
        world_size=1,
        seed=0,
    )
    tokenizer = open_clip().get_tokenizer(MODEL)
    info = data.get_wds_dataset(settings, preprocess, is_train=True, tokenizer=tokenizer)
    return iter(info.dataloader)


def ours(options: Namespace, cache_bytes: int) -> Any:
    """Our loader, at the start of its batches."""
    from orchestrator.data.batch import Views
    from orchestrator.data.captions import CaptionPolicy
    from orchestrator.data.loader import Loader
    from orchestrator.data.preprocess import Preprocess, Tokenizer
    from orchestrator.data.transforms import Augment

    return Loader(
        shards.dataset(options.shards, options.work),
        batch=options.batch,
        seed=0,
        views=Views(),
        augment=Augment(),
        captions=CaptionPolicy(),
        preprocess=Preprocess(options.size),
        tokenizer=Tokenizer(),
        threads=options.workers,
        cache_bytes=cache_bytes,
    )


def measure(
    batches: Iterator[Any], options: Namespace, keep_tokens: bool, each: Any = lambda batch: None
) -> list[float]:
    """Samples per second, and processor seconds a sample, over `--samples` samples after what lay ready."""
    from orchestrator.data.preprocess import forget_tokens

    def take(number: int) -> None:
        for batch in itertools.islice(batches, number):
            each(batch)
            if not keep_tokens:
                forget_tokens()

    settle()
    take(PREFETCHED)
    number = max(1, options.samples // options.batch)
    began, cpu = time.perf_counter(), rounds.cpu_seconds()
    take(number)
    samples = number * options.batch
    return [samples / (time.perf_counter() - began), (rounds.cpu_seconds() - cpu) / samples]


def settle() -> None:
    """Wait until everybody's buffers are full: nothing here works any more."""
    while True:
        before = rounds.cpu_seconds()
        time.sleep(0.3)
        if rounds.cpu_seconds() - before < 0.03:
            return


def run(options: Namespace) -> dict[str, list[list[float]]]:
    """All rounds of one size and number of workers, in this process."""
    import torch

    from orchestrator.data.preprocess import Preprocess

    torch.set_num_threads(1)
    peer = theirs(options)  # forks its workers before we have threads
    next(peer)
    cold, warm = ours(options, 0), ours(options, 8 << 30)
    normalise = Preprocess(options.size).normalise
    figures: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    with cold, warm:
        streams = {PEER: peer, "cold": iter(cold), "warm": iter(warm)}
        for _ in range(-(-shards.num_samples(options.shards) // options.batch)):
            next(streams["warm"])
        for _ in range(options.rounds):
            figures[PEER].append(measure(peer, options, True))
            figures["cold"].append(measure(streams["cold"], options, False))
            figures["cold, float"].append(
                measure(streams["cold"], options, False, lambda batch: normalise(batch.images[0]))
            )
            figures["warm"].append(measure(streams["warm"], options, True))
    return figures


def summary(figures: dict[str, list[list[float]]]) -> dict[str, dict[str, Any]]:
    """Medians, and ratios to open_clip_train."""
    found: dict[str, dict[str, Any]] = {}
    for side, measured in figures.items():
        speeds, cpu = ([row[column] for row in measured] for column in (0, 1))
        found[side] = {
            "samples_per_s": statistics.median(speeds),
            "samples_per_s_rounds": speeds,
            "cpu_s_per_sample": statistics.median(cpu),
        }
    for side in found.values():
        side["ratio"] = side["samples_per_s"] / found[PEER]["samples_per_s"]
        pairs = zip(side["samples_per_s_rounds"], found[PEER]["samples_per_s_rounds"])
        side["ratio_rounds"] = [mine / other for mine, other in pairs]
        side["cpu_ratio"] = found[PEER]["cpu_s_per_sample"] / side["cpu_s_per_sample"]
    return found


def show(title: str, results: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Print one table of all sizes and numbers of workers."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in ("pixels, workers", "side", "samples/s", "ratio", "ratio, rounds", "CPU ms a sample", "CPU ratio"):
        table.add_column(name, justify="right" if name not in ("side", "pixels, workers") else "left", no_wrap=True)
    for setting, sides in results.items():
        for side, figures in sides.items():
            ratios = sorted(figures["ratio_rounds"])
            table.add_row(
                setting if side == PEER else "",
                side if side == PEER else f"ours, {side}",
                f"{figures['samples_per_s']:,.0f}",
                f"{figures['ratio']:.2f}",
                f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
                f"{1000 * figures['cpu_s_per_sample']:.2f}",
                f"{figures['cpu_ratio']:.2f}",
            )
    Console(width=119).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    shards.add_arguments(parser)
    rounds.add_arguments(parser, rounds=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 32], help="image sizes in pixels")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="processes of theirs, threads of ours")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--samples", type=int, default=2048, help="measured a round")
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:  # a child, for one size and number of workers
        options.size, options.workers = options.sizes[0], options.workers[0]
        rounds.write(options.only, run(options))
        return
    shards.build(options.shards, options.source, options.limit)
    results = {}
    for size, workers in itertools.product(options.sizes, options.workers):
        results[f"{size}, {workers}"] = one = summary(_child(options, size, workers))
        print(f"{size} pixels, {workers} workers: {one['cold']['ratio']:.2f} cold, {one['warm']['ratio']:.2f} warm")
    show(f"Loaders, {shards.num_samples(options.shards):,} JPEG pictures, batch {options.batch}", results)
    rounds.write(options.json, {"machine": rounds.machine(options.threads), "results": results})


def _child(options: Namespace, size: int, workers: int) -> dict[str, list[list[float]]]:
    options.work.mkdir(parents=True, exist_ok=True)
    answer = options.work.resolve() / f"loader-{size}-{workers}.json"
    wanted = {
        "--shards": options.shards.resolve(),
        "--work": options.work.resolve(),
        "--rounds": options.rounds,
        "--sizes": size,
        "--workers": workers,
        "--batch": options.batch,
        "--samples": options.samples,
        "--only": answer,
    }
    rounds.child(["-m", "benchmarks.loader", *(str(part) for pair in wanted.items() for part in pair)], 1, Path.cwd())
    return json.loads(answer.read_text())


if __name__ == "__main__":
    main()
