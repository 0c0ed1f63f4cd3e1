"""Runs the peer: `open_clip_train` itself, its own `main`, on its own command line, and keeps a trace of it.

Nothing of it is replaced: its webdataset loader, ClipLoss, AdamW, schedule and loop run as they are installed. Beside
it, a logging handler takes the time whenever it logs a training line. `--local-loss --gather-with-grad` are what its
README recommends; a model that it does not know is given to it as the same JSON configuration. Newer webdatasets mark
the end of a shard, which open_clip_train 3.3 stumbles over: it is given the reader without the mark.

As a script (what `train` starts): python -m benchmarks.peer TRACE.json FOLDER-OF-MODELS ARGUMENTS...
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import logging
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rounds import Point, Trace, child, cpu_seconds, peak_bytes

LINE = re.compile(
    r"Train Epoch: \d+ \[\s*(?P<samples>\d+)/.*Data \(t\): (?P<data>\S+) Batch \(t\): (?P<batch>[^,]+),"
    r".* Loss: (?P<loss>\S+)"
)


@dataclass(frozen=True)
class Peer:
    """One training by open_clip_train.

    Attributes:
        shards: for --train-data.
        model: name and open_clip JSON configuration.
        teacher: likewise, and a file of its weights (--distill-model, --distill-pretrained).
        batch, steps, learning_rate, warmup_steps, weight_decay: as on our side.
        precision: `fp32`, `amp_bf16`, ...
        device: `cpu` or `cuda`.
        workers: data loader processes.
        log_every: steps between two points.
        flags: further arguments (`--torchcompile`).
    """

    shards: str
    model: tuple[str, Mapping[str, Any]]
    batch: int
    steps: int
    learning_rate: float = 5e-4
    warmup_steps: int = 10
    weight_decay: float = 0.2
    precision: str = "fp32"
    device: str = "cpu"
    workers: int = 1
    log_every: int = 1
    flags: Sequence[str] = ()
    teacher: tuple[str, Mapping[str, Any], Path] | None = None

    def arguments(self) -> list[str]:
        """Its command line."""
        options = {
            "train-data": self.shards,
            "dataset-type": "webdataset",
            "train-num-samples": self.batch * self.steps,
            "epochs": 1,
            "batch-size": self.batch,
            "workers": self.workers,
            "precision": self.precision,
            "device": self.device,
            "model": self.model[0],
            "opt": "adamw",
            "lr": self.learning_rate,
            "wd": self.weight_decay,
            "beta1": 0.9,
            "beta2": 0.98,
            "eps": 1e-6,
            "warmup": self.warmup_steps,
            "lr-scheduler": "cosine",
            "log-every-n-steps": self.log_every,
            "logs": "none",  # no checkpoint at the end
            "name": "peer",
        }
        spelt = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        if self.teacher is not None:
            spelt += ["--distill-model", self.teacher[0], "--distill-pretrained", str(self.teacher[2])]
        return [*spelt, "--local-loss", "--gather-with-grad", *self.flags]


def train(peer: Peer, threads: int) -> Trace:
    """Run it in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "models").mkdir()
        for name, config, *_ in filter(None, (peer.model, peer.teacher)):
            (place / "models" / f"{name}.json").write_text(json.dumps(config))
        command = ["-m", "benchmarks.peer", str(place / "trace"), str(place / "models"), *peer.arguments()]
        child(command, threads, cwd=place, environment=None if peer.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""})
        return Trace.read(place / "trace")


class _Stamps(logging.Handler):
    """Turns the training lines of its log into points."""

    def __init__(self) -> None:
        super().__init__()
        self.points: list[Point] = []

    def emit(self, record: logging.LogRecord) -> None:
        found = LINE.search(record.getMessage())
        if found:
            wait = float(found["data"]) / max(float(found["batch"]), 1e-9)
            self.points.append(Point(time.time(), int(found["samples"]), float(found["loss"]), cpu_seconds(), wait))


def main(out: Path, models: Path, arguments: Sequence[str]) -> None:
    """Become open_clip_train, then write the trace."""
    from orchestrator.models.open_clip_bridge import open_clip

    open_clip().add_model_config(models)
    stamps = _Stamps()
    logging.root.addHandler(stamps)
    data = importlib.import_module("open_clip_train.data")
    if "eof_value" in inspect.signature(data.tar_file_expander).parameters:
        data.tar_file_expander = functools.partial(data.tar_file_expander, eof_value=None)
    importlib.import_module("open_clip_train.main").main(list(arguments))
    Trace(stamps.points, peak_bytes()).write(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
