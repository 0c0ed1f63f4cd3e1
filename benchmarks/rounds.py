"""How the benchmarks compare: each side in a process of its own, in turn, several rounds, medians.

A training leaves a trace: when so many samples were seen, by the wall clock, with the loss and the processor time so
far. Both sides' traces are made at the same moments, just after a step whose loss was read, so a rate between two
points counts everything: data, forward and backward, optimiser. The first steps (start-up, compilation, caches) are
left out. Processor time is that of the process and its children; on a busy machine it is steadier than the clock.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "torchvision", "open_clip_torch", "webdataset", "numpy", "pillow", "pyarrow")


@dataclass(frozen=True)
class Point:
    """One moment of a training: Unix time, samples seen, loss, processor seconds, share of time waiting for data."""

    time: float
    samples: int
    loss: float
    cpu_s: float
    wait: float


@dataclass(frozen=True)
class Trace:
    """What one training left: its points, its peak memory in bytes (of the device, on a GPU), further facts."""

    points: list[Point]
    peak_bytes: int
    facts: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Trace:
        """What `write` wrote."""
        content = json.loads(path.read_text())
        return cls([Point(**point) for point in content["points"]], content["peak_bytes"], content["facts"])

    def steady(self, skip: int) -> Rates:
        """Rates from the first point at `skip` samples or more to the last."""
        points = [point for point in self.points if point.samples >= skip]
        if len(points) < 2:
            raise ValueError(f"nothing left of {len(self.points)} points after the first {skip} samples; train longer")
        first, last = points[0], points[-1]
        samples = last.samples - first.samples
        wait = statistics.fmean(point.wait for point in points[1:])
        return Rates(samples / (last.time - first.time), (last.cpu_s - first.cpu_s) / samples, wait)

    def losses(self, number: int = 6) -> list[tuple[int, float]]:
        """About so many (samples, loss), evenly spread, the first and the last among them."""
        last = len(self.points) - 1
        places = sorted({round(last * k / (number - 1)) for k in range(number)})
        return [(self.points[place].samples, self.points[place].loss) for place in places]


@dataclass(frozen=True)
class Rates:
    """Samples per second, processor seconds per sample, share of time waiting for data."""

    samples_per_s: float
    cpu_s_per_sample: float
    wait: float


@dataclass(frozen=True)
class Compared:
    """Rounds of several sides, and what they say. Ratios are of samples per second, to the side named `against`."""

    traces: Mapping[str, Sequence[Trace]]
    skip: int
    against: str

    def rates(self, side: str) -> list[Rates]:
        """Of each round."""
        return [trace.steady(self.skip) for trace in self.traces[side]]

    def speed(self, side: str) -> float:
        """Median samples per second."""
        return statistics.median(rates.samples_per_s for rates in self.rates(side))

    def ratio(self, side: str) -> float:
        """Median over median."""
        return self.speed(side) / self.speed(self.against)

    def ratios(self, side: str) -> list[float]:
        """Round by round."""
        pairs = zip(self.rates(side), self.rates(self.against))
        return [mine.samples_per_s / other.samples_per_s for mine, other in pairs]

    def cpu_ratio(self, side: str) -> float:
        """Median processor time a sample of the other over this side's."""
        mine, other = (statistics.median(r.cpu_s_per_sample for r in self.rates(s)) for s in (side, self.against))
        return other / mine

    def summary(self) -> dict[str, Any]:
        """For JSON: every side's figures, medians of rounds."""
        return {side: self._of(side) for side in self.traces}

    def _of(self, side: str) -> dict[str, Any]:
        rates, ratios, traces = self.rates(side), self.ratios(side), self.traces[side]
        return {
            "samples_per_s": self.speed(side),
            "samples_per_s_rounds": [r.samples_per_s for r in rates],
            "ratio": self.ratio(side),
            "ratio_rounds": ratios,
            "cpu_s_per_sample": statistics.median(r.cpu_s_per_sample for r in rates),
            "cpu_ratio": self.cpu_ratio(side),
            "data_wait_share": statistics.median(r.wait for r in rates),
            "peak_bytes": max(trace.peak_bytes for trace in traces),
            "losses": traces[0].losses(),
            "facts": traces[-1].facts,
        }


def alternate(
    sides: Mapping[str, Callable[[], Trace]], rounds: int, skip: int, against: str, say: Callable[[str], None] = print
) -> Compared:
    """Run every side once a round, in the given order."""
    traces: dict[str, list[Trace]] = {side: [] for side in sides}
    for number in range(rounds):
        for side, train in sides.items():
            trace = train()
            traces[side].append(trace)
            rate = trace.steady(skip).samples_per_s
            say(f"round {number + 1}/{rounds}  {side}: {rate:,.1f} samples/s")
    return Compared(traces, skip, against)


def show(title: str, compared: Compared) -> None:
    """Print the comparison and the loss curves."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in ("", "samples/s", "min to max", "ratio", "ratio, rounds", "CPU ratio", "data wait", "peak memory"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for side in compared.traces:
        rates, ratios = sorted(r.samples_per_s for r in compared.rates(side)), sorted(compared.ratios(side))
        figures = compared.summary()[side]
        table.add_row(
            side,
            f"{compared.speed(side):,.1f}",
            f"{rates[0]:,.1f} to {rates[-1]:,.1f}",
            f"{compared.ratio(side):.2f}",
            f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
            f"{figures['cpu_ratio']:.2f}",
            f"{figures['data_wait_share']:.1%}",
            f"{figures['peak_bytes'] / 2**30:.2f} GiB",
        )
    console = Console(width=None if sys.stdout.isatty() else 119)
    console.print(table)
    for side, traces in compared.traces.items():
        curve = "  ".join(f"{samples:,}: {loss:.3f}" for samples, loss in traces[0].losses())
        console.print(f"loss, {side}:  {curve}", highlight=False)


def child(command: Sequence[str], threads: int, cwd: Path, environment: Mapping[str, str] | None = None) -> None:
    """Run `python command...` with so many compute threads, this repository importable; RuntimeError with the end of
    its output if it fails.
    """
    settings = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, **settings, "PYTHONPATH": os.pathsep.join(paths), **(environment or {})}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-6000:]}")


def cpu_seconds() -> float:
    """Processor time of this process and of the loader processes it has started."""
    import psutil

    own = resource.getrusage(resource.RUSAGE_SELF)
    total = own.ru_utime + own.ru_stime
    for other in multiprocessing.active_children():
        with suppress(psutil.Error):  # it just ended
            total += sum(psutil.Process(other.pid).cpu_times()[:2])
    return total


def peak_bytes() -> int:
    """On a GPU the peak of memory allocated there, else this process's peak resident size (VmHWM)."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # getrusage would not do: after a fork its maximum is that of the parent
    found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def machine(threads: int) -> dict[str, Any]:
    """What the figures depend on."""
    import torch

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions | {"torch": torch.__version__},
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def add_arguments(parser: argparse.ArgumentParser, rounds: int = 3) -> None:
    """What every comparison has."""
    parser.add_argument("--rounds", type=int, default=rounds, help="how often each side is run")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="compute threads of each side")
    parser.add_argument(
        "--work", type=Path, default=Path("build/benchmarks"), help="folder for what is made on the way"
    )
    parser.add_argument("--json", type=Path, help="write all figures here")


def write(path: Path | None, content: Mapping[str, Any]) -> None:
    """The figures as JSON, if a path was given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1, default=str) + "\n")
