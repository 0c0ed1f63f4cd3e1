"""How much memory and time does one step of a huge batch take with gradient caching?

    python -m benchmarks.gradient_cache                            ViT-S/32 at 2,048 and 4,096, micro-batches of 64
    python -m benchmarks.gradient_cache --batches 2048 4096 16384  16,384 takes about 20 minutes on two cores

One step of the loop (`fit`), each batch size in a process of its own: seconds, and the peak resident memory (VmHWM)
beside what must be there anyway: the pixels as uint8, and the features with their gradients, in fp32, of both towers.
`rest` is the peak less the two; if it stays the same from batch to batch, memory grows by pixels and features alone.
The loss is tiled, so no matrix of batch x batch is ever whole (at 16,384 one would be 1 GiB).

The batch is made once, before the step, from the shards (pictures come up again where there are too few), and no
second one is made ahead: the step is measured, not the loader. The limit asked for is 6 GiB at 16,384.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import ours, rounds, shards

LIMIT_BYTES = 6 << 30


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-S-32", help="a name of the catalog")
    parser.add_argument("--batches", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--micro-batch", type=int, default=64)
    rounds.add_arguments(parser, rounds=1)
    shards.add_arguments(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run, print, write; the figures."""
    chosen = options(arguments)
    facts = rounds.machine(chosen.threads)
    shards.build(chosen.shards, chosen.source, chosen.limit)
    bench = ours.Bench(chosen.shards, chosen.work)
    found = []
    for batch in chosen.batches:
        found.append(one_step(bench, chosen.model, batch, chosen.micro_batch, chosen.threads))
        print(
            f"batch {batch:,}: {found[-1]['step_s']:.1f} s, peak {found[-1]['peak_bytes'] / 2**30:.2f} GiB", flush=True
        )
    figures = {"machine": facts, "options": vars(chosen), "steps": found}
    show(chosen.model, chosen.micro_batch, found)
    rounds.write(chosen.json, figures)
    return figures


def one_step(bench: ours.Bench, model: str, batch: int, micro_batch: int, threads: int) -> dict[str, Any]:
    """Figures of one step in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "step.json"
        job = {"store": bench.store.url, "data": bench.data, "model": model, "batch": batch, "threads": threads}
        told = json.dumps(job | {"micro_batch": micro_batch})
        command = ["-m", "benchmarks.gradient_cache", "--step", told, str(out)]
        rounds.child(command, threads, cwd=Path(folder), environment={"CUDA_VISIBLE_DEVICES": ""})
        return json.loads(out.read_text())


def show(model: str, micro_batch: int, found: Sequence[Mapping[str, Any]]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    title = f"one step of {model} with gradient caching, micro-batches of {micro_batch}"
    table = Table(title=title, title_justify="left")
    for name in ("batch", "seconds", "samples/s", "peak GiB", "pixels", "features", "rest", "loss"):
        table.add_column(name, justify="right")
    for step in found:
        known = step["pixel_bytes"] + step["feature_bytes"]
        sizes = (step["peak_bytes"], step["pixel_bytes"], step["feature_bytes"], step["peak_bytes"] - known)
        rate = step["batch"] / step["step_s"]
        gib = [f"{size / 2**30:.2f}" for size in sizes]
        table.add_row(f"{step['batch']:,}", f"{step['step_s']:,.1f}", f"{rate:.1f}", *gib, f"{step['loss']:.3f}")
    Console(width=119).print(table)


def step(job: Mapping[str, Any]) -> dict[str, Any]:
    """One step, here and now."""
    import torch

    from orchestrator.data.dataset import Dataset
    from orchestrator.methods.clip.config import Clip
    from orchestrator.methods.clip.method import ClipMethod
    from orchestrator.models.open_clip_bridge import create
    from orchestrator.stages.train.config import Pretrain
    from orchestrator.store.artifacts import Store
    from orchestrator.training.loop import fit
    from orchestrator.training.method import Build
    from orchestrator.training.types import FitSpec, World

    torch.set_num_threads(job["threads"])
    world, batch = World(), job["batch"]
    shape = {"micro_batch": job["micro_batch"]}
    config = Pretrain.model_validate(ours.settings(batch, 1, job["model"], warmup_steps=0, **shape))
    model = create(config.model.open_clip)
    method = ClipMethod(Clip(), Build(model, None, batch, batch, world, seed=0))
    feed = OneBatch(Dataset.open(Store.open(job["store"]).handle(*job["data"])), config.model, batch)
    spec = FitSpec(config, batch, feed.preprocess.normalise)
    before = rounds.peak_bytes()
    started = time.perf_counter()
    report = deque(fit(spec, method, lambda start: feed, world, Silent()), maxlen=1).pop()
    return {
        "batch": batch,
        "step_s": time.perf_counter() - started,
        "peak_bytes": rounds.peak_bytes(),
        "peak_before_step_bytes": before,
        "pixel_bytes": feed.batch.images[0].nbytes,
        "feature_bytes": 2 * 2 * batch * config.model.open_clip["embed_dim"] * 4,  # type: ignore[operator]
        "loss": report.metrics["loss"],
    }


class OneBatch:
    """A feed that has one batch, made at once."""

    wait_s = 0.0

    def __init__(self, dataset: Any, model: Any, size: int) -> None:
        import torch

        from orchestrator.data.batch import Batch
        from orchestrator.data.preprocess import Preprocess, Tokenizer

        self.preprocess = Preprocess(model.image_size)
        rows = [row % len(dataset) for row in range(size)]
        pixels = torch.empty((size, 3, model.image_size, model.image_size), dtype=torch.uint8)
        for first in range(0, min(size, len(dataset)), 64):
            for place, data in enumerate(dataset.images(rows[first : first + 64][: len(dataset) - first]), first):
                pixels[place] = torch.from_numpy(self.preprocess.decode(data))
        for place in range(len(dataset), size):
            pixels[place] = pixels[rows[place]]
        captions = [found[0].text for found in dataset.captions(rows)]
        tokens = Tokenizer(context_length=model.context_length)(captions)
        self.batch = Batch((pixels,), (tokens,), tuple(dataset.uids[row] for row in rows))

    def __iter__(self) -> Iterator[Any]:
        yield self.batch

    def __enter__(self) -> OneBatch:
        return self

    def __exit__(self, *exc: object) -> None:
        return


class Silent:
    """The loop's doors, closed."""

    def save(self, samples: int, state: Mapping[str, Any]) -> None: ...
    def load(self) -> None: ...
    def report(self, report: Any) -> None: ...
    def phase(self, name: str) -> None: ...
    def message(self, level: str, text: str) -> None: ...
    def kept(self) -> None: ...
    def nonfinite(self, samples: int, uids: Sequence[str]) -> None: ...
    def should_stop(self) -> None: ...


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        Path(sys.argv[3]).write_text(json.dumps(step(json.loads(sys.argv[2]))))
    else:
        main()
