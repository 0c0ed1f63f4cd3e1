"""Runs our side: the very worker that stages run (stages/train/worker.py), on an indexed Dataset, and keeps a trace.

`Bench` indexes the shards once into a store, as the `dataset` stage does; nothing is held out, so both sides have the
same samples. Each training is then a process of its own, or several under torchrun, that opens the store and trains.
Checkpoints and validation are off, as they are on the other side.

As a script (what `Bench.train` starts): python -m benchmarks.ours JOB.json TRACE.json
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.rounds import Point, Trace, child, cpu_seconds, peak_bytes
from orchestrator.training.threads import share_cores

NEVER = 10**9


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        kind: `pretrain` or `distill`.
        stage: the stage's settings, as a recipe writes them.
        threads: compute threads of each worker.
        workers: processes.
        device: `cpu` or `cuda`.
        inputs: by the reference's path in the settings, (kind, fingerprint) of an artifact in the store.
        names: by the reference's path, an external reference.
        profile: also say where the time goes (benchmarks/breakdown.py).
    """

    kind: str
    stage: Mapping[str, Any]
    threads: int
    workers: int = 1
    device: str = "cpu"
    inputs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    profile: bool = False


class Bench:
    """A store with the shards as a Dataset, under `work`."""

    def __init__(self, shards: Path, work: Path) -> None:
        from orchestrator.data import source
        from orchestrator.stages.dataset.config import DatasetStage, SplitConfig
        from orchestrator.store.artifacts import Store

        self.work = work.resolve()
        self.store = Store.open(str(self.work / "store"))
        digest = source.prepare(str(shards.resolve()), self.store)
        nothing_held_out = SplitConfig(ood_style=None, unseen=0, held=0, holdout=0)
        config = DatasetStage(source=str(shards.resolve()), split=nothing_held_out)
        self.data = self.made("dataset", config, f"{digest[:48]}{source.locate(config.source).place[-16:]}")

    def made(
        self,
        kind: str,
        config: Any,
        fingerprint: str,
        inputs: Mapping[str, tuple[str, str]] | None = None,
        names: Mapping[str, str] | None = None,
    ) -> tuple[str, str]:
        """Run a stage and publish what it makes, unless it is there: (kind, fingerprint)."""
        if self.store.find(kind, fingerprint) is None:
            _run_stage(self.store, kind, config, fingerprint, inputs or {}, names or {})
        return kind, fingerprint

    def train(self, training: Training) -> Trace:
        """One training in a process of its own (or several)."""
        with tempfile.TemporaryDirectory() as folder:
            job, out = Path(folder) / "job.json", Path(folder) / "trace.json"
            job.write_text(json.dumps(asdict(training) | {"store": self.store.url, "data": self.data}))
            module = ["-m", "benchmarks.ours", str(job), str(out)]
            if training.workers > 1:
                several = ["--standalone", "--nproc-per-node", str(training.workers)]
                module = ["-m", "torch.distributed.run", *several, *module]
            hidden = None if training.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
            child(module, training.threads, cwd=Path(folder), environment=hidden)
            return Trace.read(out)


def settings(batch: int, steps: int, model: Any, **more: Any) -> dict[str, Any]:
    """Settings of a stage with the optimiser that `Peer` has: AdamW of CLIP, cosine, no clipping."""
    return {
        "data": "pairs",
        "model": model,
        "batch": batch,
        "steps": steps,
        "learning_rate": 5e-4,
        "weight_decay": 0.2,
        "warmup_steps": 10,
        "clip_grad_norm": None,
        "report_every": 1,
        "checkpoint_every": NEVER,
        **more,
    }


class _Stamps:
    """The worker's event sink: turns reports into points. Ranks do alike: processor time is this one's times all."""

    def __init__(self, ranks: int = 1) -> None:
        self.ranks = ranks
        self.points: list[Point] = []
        self.last: dict[str, float] = {}

    def emit(self, type: str, **fields: Any) -> None:
        if type == "report":
            metrics = fields["metrics"]
            cpu_s, wait = self.ranks * cpu_seconds(), metrics["data_wait_share"]
            self.points.append(Point(time.time(), fields["samples"], metrics["loss"], cpu_s, wait))
            self.last = metrics

    def flush(self) -> bool:
        return True


def main(job_file: Path, out: Path) -> None:
    """Train, then write the trace (the first rank)."""
    from benchmarks.breakdown import Breakdown
    from orchestrator.stages.train import config, worker
    from orchestrator.store.artifacts import Store
    from orchestrator.store.checkpoints import CheckpointStore
    from orchestrator.training.distributed import from_environment

    job = json.loads(job_file.read_text())
    store, stamps = Store.open(job["store"]), _Stamps(job["workers"])
    stage = getattr(config, job["kind"].capitalize()).model_validate(job["stage"])
    inputs = {"data": job["data"], **job["inputs"]}
    handles = {name: store.handle(kind, fingerprint) for name, (kind, fingerprint) in inputs.items()}
    told = worker.TrainJob(
        config=stage,
        inputs=handles,
        names={name: name for name in handles} | job["names"],
        checkpoints=CheckpointStore(store.storage, "benchmark", 1),
        resume=None,
        threads=job["threads"],
    )
    with from_environment() as world, tempfile.TemporaryDirectory() as folder:
        profile = Breakdown() if job["profile"] else None
        with profile or tempfile.TemporaryDirectory():
            result = worker.train(told, world, stamps, lambda: None, Path(folder))
        if world.rank == 0:
            facts = {"metrics": stamps.last, "summary": result.summary}
            if profile is not None:
                facts["profile"] = profile.report()
            Trace(stamps.points, peak_bytes(), facts).write(out)


def _run_stage(
    store: Any,
    kind: str,
    config: Any,
    fingerprint: str,
    inputs: Mapping[str, tuple[str, str]],
    names: Mapping[str, str],
) -> None:
    """Call a stage's runner and publish what it wrote, as the engine does."""
    from importlib import import_module

    from orchestrator.data import source
    from orchestrator.plan.types import Resources
    from orchestrator.stages.base import StageContext
    from orchestrator.store.artifacts import Manifest, new_attempt
    from orchestrator.store.checkpoints import CheckpointStore

    handles = {name: store.handle(*place) for name, place in inputs.items()}
    with tempfile.TemporaryDirectory() as folder:
        out, scratch = Path(folder) / "out", Path(folder) / "scratch"
        out.mkdir()
        scratch.mkdir()
        context = StageContext(
            run_id="benchmark",
            stage=kind,
            kind=kind,
            fingerprint=fingerprint,
            config=config,
            inputs=handles,
            input_names={name: name for name in handles} | dict(names),
            store=store,
            out=out,
            scratch=scratch,
            checkpoints=CheckpointStore(store.storage, fingerprint, 1),
            resources=Resources(cpus=config.resources.cpus),
            events=_Stamps(),
            should_stop=lambda: None,
            sources={name: source.known(name, store).place for name in config.external_sources()},
        )
        module, _, function = config.runner.partition(":")
        outcome = getattr(import_module(module), function)(context)
        manifest = Manifest(
            kind=kind,
            fingerprint=fingerprint,
            attempt=new_attempt(),
            generation=1,
            stage=kind,
            run="benchmark",
            payload={},
            inputs={},
            files={},
            content_digest="",
            metrics=outcome.metrics,
            summary=outcome.summary,
            provenance={},
            started=0.0,
            finished=0.0,
            wall_s=0.0,
        )
        store.publish(manifest, out, outcome.undeclared)


if __name__ == "__main__":
    share_cores(os.environ)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
