"""How fast is training on one GPU, and beside open_clip_train on it?

    python -m benchmarks.gpu                                 both models on the GPU of this machine
    python -m benchmarks.gpu --models ViT-B-32 --json b32.json --minutes 9
    python -m benchmarks.gpu --device cpu --toy              the whole script at toy size, no GPU

For ViT-B/32 and ViT-B/16 at 224 in bf16, without gradient caching: the largest batch that pays (powers of two, until
memory ends or nothing is gained; the peer must manage it too), then in turn, at that batch,

- ours, as a recipe without options would run, and with `compile: true`;
- open_clip_train with `--precision amp_bf16`, and with `--torchcompile` besides (its best flags).

Told of each: samples a second, model-FLOPs utilisation, peak memory allocated, share of the time waiting for data.
Both read the same JPEG shards from disk; `--copies` repeats them so that our cache of decoded pictures does not help.
MFU is the arithmetic really done (3 forward passes' worth a step, ours after cutting the padding, theirs at 77 tokens)
over the GPU's dense bf16 peak: models/flops.py. Samples a second is what compares the two.

A machine without network needs wheels and shards brought along. Where there is a network:

    python -m benchmarks.gpu --wheels build/wheels --download         11 MB; `--also pyarrow` where it is missing
    python -m benchmarks.shards --out build/shards --limit 1024       about 12 MB

and there, on Python 3.12 with torch and torchvision (neither Ray nor a compiler is needed):

    python3 -m benchmarks.gpu --missing                               what it lacks
    python3 -m benchmarks.gpu --wheels build/wheels --limit 1024 --copies 64

Caveats: the peer's loader processes make whole batches, so a run must be long beside `workers` batches before its rate
is steady; `--steps` and `--skip` say how long, and the points of every run are in the JSON file.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import rounds, wheels

if TYPE_CHECKING:
    from benchmarks.ours import Bench, Training
    from benchmarks.peer import Peer

GAIN = 1.03
"""A batch twice as large must be this much faster to be worth trying on."""
TOY: dict[str, Any] = {
    "models": ["tiny"],
    "batches": [8, 16],
    "steps": 6,
    "skip": 2,
    "report_every": 1,
    "probe_steps": 4,
    "rounds": 1,
    "precision": "fp32",
    "source": "builtin",
    "limit": 64,
    "copies": 2,
    "workers": 1,
    "compile": False,
}
PEER_PRECISION = {"bf16": "amp_bf16", "fp32": "fp32"}


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line; `--toy` sets what is not given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "ViT-B-16"])
    parser.add_argument("--batches", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192], help="tried in turn")
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps of each training")
    parser.add_argument("--skip", type=int, default=20, help="first steps that are not counted")
    parser.add_argument(
        "--probe-steps", type=int, default=12, help="steps of a training that only looks for the batch"
    )
    parser.add_argument("--report-every", type=int, default=5, help="steps between two points")
    parser.add_argument("--precision", choices=PEER_PRECISION, default="bf16")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--workers", type=int, default=max(1, (os.cpu_count() or 1) - 2), help="loaders of either side"
    )
    parser.add_argument("--copies", type=int, default=8, help="how often the shards are repeated on disk")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave the compiled sides out")
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="leave open_clip_train out")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no training after so long")
    parser.add_argument("--toy", action="store_true", help="seconds on a CPU, to see that everything runs")
    parser.add_argument("--missing", action="store_true", help="only name the packages this machine lacks")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to use where a package is missing")
    parser.add_argument("--download", action="store_true", help="only fetch the wheels into --wheels")
    parser.add_argument("--also", nargs="+", default=[], help="with --download: further packages")
    parser.add_argument("--shards", type=Path, default=Path("build/shards"), help="built there if missing")
    parser.add_argument("--source", choices=("drawn", "builtin"), default="drawn", help="what the shards hold")
    parser.add_argument("--limit", type=int, default=4096, help="samples at most")
    rounds.add_arguments(parser, rounds=2)
    if arguments is None:
        arguments = sys.argv[1:]
    if "--toy" in arguments:
        parser.set_defaults(**TOY)
    chosen = parser.parse_args(arguments)
    if min(chosen.steps - chosen.skip, chosen.probe_steps) < 2 * chosen.report_every:
        parser.error("a training must have two reports after the steps that are skipped")
    return chosen


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run, print, write; the figures."""
    chosen = options(arguments)
    if chosen.missing:
        print("missing here:", ", ".join(wheels.missing()) or "nothing")
        return {}
    if chosen.download:
        wheels.download(chosen.wheels, chosen.also)
        return {}
    if chosen.wheels is not None:
        place = str(wheels.unpack(chosen.wheels))
        sys.path.insert(0, place)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [place, os.environ.get("PYTHONPATH")]))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(chosen.work.resolve() / "inductor"))
    if chosen.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    figures: dict[str, Any] = {"machine": rounds.machine(chosen.threads), "options": vars(chosen), "models": {}}
    machine = Machine(chosen)
    for name in chosen.models:
        figures["models"][name] = found = machine.measure(name)
        rounds.write(chosen.json, figures)
        show(name, found)
    return figures


class Machine:
    """The GPU, with the shards repeated on its disk and a store."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        from benchmarks import ours, shards

        self.chosen, self.started = chosen, time.monotonic()
        paths = shards.build(chosen.shards, chosen.source, chosen.limit)
        self.shards = repeat(paths, chosen.work / f"shards-x{chosen.copies}", chosen.copies)
        self.samples = shards.num_samples(chosen.shards) * chosen.copies
        self.bench: Bench = ours.Bench(self.shards[0].parent, chosen.work)

    def measure(self, name: str) -> dict[str, Any]:
        """One model: the batch, then all sides in turn."""
        batch, tried = self.largest_batch(name)
        result: dict[str, Any] = {"batch": batch, "batches_tried": tried, "sides": {}, "failed": {}}
        sides = self.sides(name, batch)
        traces: dict[str, list[rounds.Trace]] = {}
        for number in range(self.chosen.rounds):
            for side, train in sides.items():
                if side in result["failed"] or self.over():
                    continue
                try:
                    traces.setdefault(side, []).append(train())
                except RuntimeError as error:
                    result["failed"][side] = _reason(error)
                    continue
                rate = traces[side][-1].steady(self.chosen.skip * batch).samples_per_s
                print(f"{name}, round {number + 1}: {side}: {rate:,.0f} samples/s", flush=True)
        if traces:
            result["sides"] = self.summary(name, batch, {side: found for side, found in traces.items() if found})
        return result

    def largest_batch(self, name: str) -> tuple[int, dict[str, Any]]:
        """The largest power of two that is worth it, and what was seen on the way: batch -> samples/s or a reason."""
        tried: dict[str, Any] = {}
        best, best_rate = 0, 0.0
        for batch in self.chosen.batches:
            if batch > self.samples or self.over():
                break
            try:
                trace = self.bench.train(self.ours(name, batch, self.chosen.probe_steps, compiled=False))
            except RuntimeError as error:
                tried[str(batch)] = _reason(error)
                break
            rate = trace.steady(batch * self.chosen.report_every).samples_per_s
            tried[str(batch)] = {"samples_per_s": rate, "peak_bytes": trace.peak_bytes}
            print(f"{name}, batch {batch:,}: {rate:,.0f} samples/s, {trace.peak_bytes / 2**30:.1f} GiB", flush=True)
            if rate < GAIN * best_rate:
                break
            best, best_rate = batch, rate
        if not best:
            raise RuntimeError(f"{name} cannot be trained here: {tried}")
        return (self.peers_batch(name, best) if self.chosen.peer else best), tried

    def peers_batch(self, name: str, batch: int) -> int:
        """The batch, halved until open_clip_train can do it in this memory."""
        from benchmarks import peer

        while batch > self.chosen.batches[0]:
            try:
                peer.train(self.peer(name, batch, self.chosen.probe_steps, flags=()), self.chosen.threads)
                return batch
            except RuntimeError as error:
                if "out of memory" not in str(error):
                    raise
                print(f"{name}, batch {batch:,}: open_clip_train runs out of memory", flush=True)
                batch //= 2
        return batch

    def sides(self, name: str, batch: int) -> dict[str, Callable[[], rounds.Trace]]:
        """All that is compared."""
        from benchmarks import peer

        steps = self.chosen.steps
        sides: dict[str, Callable[[], rounds.Trace]] = {}
        plain = self.ours(name, batch, steps, compiled=False)
        other = self.peer(name, batch, steps, flags=())
        sides["ours"] = lambda: self.bench.train(plain)
        if self.chosen.compile:
            compiled = self.ours(name, batch, steps, compiled=True)
            sides["ours, compiled"] = lambda: self.bench.train(compiled)
        if self.chosen.peer:
            sides["open_clip_train"] = lambda: peer.train(other, self.chosen.threads)
        if self.chosen.peer and self.chosen.compile:
            best = replace(other, flags=("--torchcompile",))
            sides["open_clip_train --torchcompile"] = lambda: peer.train(best, self.chosen.threads)
        return sides

    def ours(self, name: str, batch: int, steps: int, compiled: bool) -> Training:
        """Our training of a model."""
        from benchmarks import ours

        settings = ours.settings(batch, steps, name, precision=self.chosen.precision, compile=compiled)
        settings |= {"report_every": self.chosen.report_every}
        return ours.Training("pretrain", settings, self.chosen.workers, device=self.chosen.device)

    def peer(self, name: str, batch: int, steps: int, flags: tuple[str, ...]) -> Peer:
        """The same training by open_clip_train."""
        from benchmarks import peer, shards
        from orchestrator.models import catalog

        return peer.Peer(
            shards=shards.pattern(self.shards),
            model=(name, catalog.resolve(name)),
            batch=batch,
            steps=steps,
            precision=PEER_PRECISION[self.chosen.precision],
            device=self.chosen.device,
            workers=self.chosen.workers,
            log_every=self.chosen.report_every,
            flags=flags,
        )

    def summary(self, name: str, batch: int, traces: Mapping[str, list[rounds.Trace]]) -> dict[str, Any]:
        """Medians, ratios to open_clip_train (to its best side, too), MFU."""
        from orchestrator.models import catalog

        base = "open_clip_train" if "open_clip_train" in traces else next(iter(traces))
        compared = rounds.Compared(traces, self.chosen.skip * batch, base)
        summary = compared.summary()
        theirs = [compared.speed(side) for side in traces if side.startswith("open_clip_train")]
        peak = peak_flops(self.chosen.precision) if self.chosen.device == "cuda" else None
        for side, found in summary.items():
            theirs_too = side.startswith("open_clip_train")
            flops = flops_per_sample(catalog.resolve(name)) if theirs_too else done_per_sample(found["facts"])
            found["tflops_per_s"] = flops * found["samples_per_s"] / 1e12
            found["mfu"] = None if peak is None else flops * found["samples_per_s"] / peak
            found["ratio_to_its_best"] = found["samples_per_s"] / max(theirs) if theirs else None
            found["points"] = [[asdict(point) for point in trace.points] for trace in traces[side]]
        return summary

    def over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() - self.started > 60 * self.chosen.minutes


def repeat(paths: list[Path], folder: Path, copies: int) -> list[Path]:
    """The shards, each so many times under running numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    repeated = [folder / f"bench-{number:05d}.tar" for number in range(copies * len(paths))]
    for number, path in enumerate(repeated):
        original = paths[number % len(paths)]
        if not path.is_file() or path.stat().st_size != original.stat().st_size:
            shutil.copyfile(original, path)
    for path in set(folder.glob("*.tar")) - set(repeated):
        path.unlink()
    return repeated


def peak_flops(precision: str) -> float | None:
    """The GPU's peak, if it is known."""
    import torch

    from orchestrator.models import flops

    return flops.peak_flops(torch.cuda.get_device_name(), precision)


def flops_per_sample(config: Mapping[str, Any]) -> float:
    """What open_clip computes for one pair, forward and backward: all tokens in all blocks, by models/flops.py's
    formula.
    """
    from orchestrator.models import catalog
    from orchestrator.training.flops import TRAINED

    vision, text, dims = config["vision_cfg"], config["text_cfg"], config["embed_dim"]
    patches, width = (catalog.image_size(config) // vision["patch_size"]) ** 2, vision["width"]
    image = _blocks(patches + 1, width, vision["layers"]) + 6 * patches * vision["patch_size"] ** 2 * width
    words = _blocks(catalog.context_length(config), text["width"], text["layers"])
    return TRAINED * (image + words + 2 * dims * (width + text["width"]))


def _blocks(tokens: int, width: int, layers: int) -> float:
    return layers * (8 * tokens * width**2 + 4 * tokens * width * 4 * width + 4 * tokens**2 * width)


def done_per_sample(facts: Mapping[str, Any]) -> float:
    """Arithmetic of a sample as our worker reported it."""
    metrics = facts["metrics"]
    return metrics["tflops_per_s"] * 1e12 / metrics["samples_per_s"]


def show(name: str, found: Mapping[str, Any]) -> None:
    """Print a model's table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{name}, batch {found['batch']:,}", title_justify="left")
    for column in ("", "samples/s", "ratio", "to its best", "MFU", "TFLOP/s", "data wait", "peak memory"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for side, figures in found["sides"].items():
        best, mfu = figures["ratio_to_its_best"], figures["mfu"]
        table.add_row(
            side,
            f"{figures['samples_per_s']:,.0f}",
            f"{figures['ratio']:.2f}",
            "" if best is None else f"{best:.2f}",
            "" if mfu is None else f"{mfu:.1%}",
            f"{figures['tflops_per_s']:,.1f}",
            f"{figures['data_wait_share']:.1%}",
            f"{figures['peak_bytes'] / 2**30:.1f} GiB",
        )
    console = Console(width=119)
    console.print(table)
    for side, reason in found["failed"].items():
        console.print(f"{side}: {reason}", style="red")


def _reason(error: RuntimeError) -> str:
    """Why a training ended, in a line."""
    text = str(error).strip()
    return "out of memory" if "out of memory" in text else text.splitlines()[-1]


if __name__ == "__main__":
    main()
