"""Runs made by hand in a store on any kind of root: what the engine would leave behind, without an engine."""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from orchestrator.data import source
from orchestrator.data.location import is_shared
from orchestrator.plan.types import Resources
from orchestrator.report.page import page
from orchestrator.stages.dataset import run as dataset_runner
from orchestrator.stages.dataset.config import DatasetStage
from orchestrator.store.artifacts import Manifest, Store
from orchestrator.store.events import EventWriter
from orchestrator.store.logs import LogWriter
from orchestrator.store.process import this_process
from orchestrator.store.runs import Run, create_run

NOW = time.time()
CODE = {"commit": "c0ffee" * 6 + "abcd", "dirty": True, "diff_sha256": "d1ff" * 16, "diff": "-old line\n+new <line>"}
PROVENANCE = {
    "code": CODE,
    "packages": {"torch": "2.13.0", "ray": "2.60.0"},
    "host": {"name": "node-7", "platform": "Linux", "python": "3.11.7"},
    "argv": ["orch", "submit", "lab.yaml"],
    "cpus": 2.0,
    "gpus": 0.0,
    "workers": 1,
}


def picture(number: int) -> bytes:
    """A PNG of one colour."""
    out = io.BytesIO()
    Image.new("RGB", (40, 30), (number * 53 % 256, number * 91 % 256, number * 17 % 256)).save(out, "PNG")
    return out.getvalue()


def write_shard(folder: Path, samples: Sequence[tuple[str, bytes]]) -> str:
    """A WebDataset shard of (caption, encoded image); its folder."""
    import tarfile

    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number, (caption, image) in enumerate(samples):
            for suffix, content in (("png", image), ("txt", caption.encode())):
                info = tarfile.TarInfo(f"{number:04d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return str(folder)


class Lab:
    """One run of one store. Stages are added in order; `run` writes its record."""

    def __init__(self, root: str, folder: Path) -> None:
        self.store, self.folder = Store.open(root), folder
        self.stages: dict[str, dict[str, Any]] = {}
        self.states: dict[str, dict[str, Any]] = {}
        self.made: dict[str, Manifest] = {}

    def fingerprint(self, name: str) -> str:
        """The stage's, made up."""
        import hashlib

        return hashlib.sha256(name.encode()).hexdigest()

    def stage(self, name: str, kind: str, needs: Sequence[str] = (), state: str = "done", **status: Any) -> None:
        """A stage in some state."""
        self.stages[name] = {"kind": kind, "fingerprint": self.fingerprint(name), "needs": list(needs)}
        ended = None if state in ("running", "waiting") else NOW - 40
        self.states[name] = {
            "name": name,
            "kind": kind,
            "fingerprint": self.fingerprint(name),
            "state": state,
            "reason": "",
            "remedy": "",
            "attempts": 1,
            "started": None if state in ("waiting", "cached", "skipped") else NOW - 100,
            "finished": ended,
            **status,
        }

    def finish(
        self,
        name: str,
        files: Mapping[str, bytes] | Path,
        metrics: Mapping[str, float] | None = None,
        summary: Mapping[str, Any] | None = None,
        inputs: Mapping[str, str] | None = None,
        **changes: Any,
    ) -> Manifest:
        """Publish a stage's artifact. `inputs`: reference path -> stage."""
        kind, fingerprint = self.stages[name]["kind"], self.fingerprint(name)
        if not isinstance(files, Path):
            folder = Path(tempfile.mkdtemp(dir=self.folder))
            for file, content in files.items():
                (folder / file).write_bytes(content)
            files = folder
        made = {path: self.made[stage] for path, stage in (inputs or {}).items()}
        fields = {
            "kind": kind,
            "fingerprint": fingerprint,
            "attempt": "0001",
            "generation": 1,
            "stage": name,
            "run": "the-run",
            "payload": {"kind": kind, "config": {"seed": 7}},
            "inputs": {
                path: {
                    "artifact": "Dataset",
                    "kind": m.kind,
                    "fingerprint": m.fingerprint,
                    "output": "default",
                    "content_digest": m.content_digest,
                    "name": m.stage,
                }
                for path, m in made.items()
            },
            "files": {},
            "content_digest": "",
            "metrics": metrics or {},
            "summary": summary or {},
            "provenance": PROVENANCE,
            "started": NOW - 100,
            "finished": NOW - 40,
            "wall_s": 60.0,
            **changes,
        }
        self.made[name] = self.store.publish(Manifest(**fields), files)
        return self.made[name]

    def dataset(self, name: str, samples: Sequence[tuple[str, bytes]]) -> Manifest:
        """A data set of (caption, image), indexed and made by its real runner."""
        self.stage(name, "dataset")
        location = write_shard(self.folder / f"shards-{name}", samples)
        config = DatasetStage(source=location)
        source.prepare(location, self.store)
        if config.copies(is_shared(location), self.store.storage.local("x") is not None):
            source.copy_in(location, self.store)
        out = Path(tempfile.mkdtemp(dir=self.folder))
        context = SimpleNamespace(
            config=config,
            store=self.store,
            inputs={},
            out=out,
            resources=Resources(),
            events=SimpleNamespace(emit=lambda type, **fields: None),
            sources={location: source.known(location, self.store).place},
        )
        outcome = dataset_runner.run(context)
        payload = {"kind": "dataset", "config": {}, "external": ["e" * 64]}
        return self.finish(name, out, outcome.metrics, outcome.summary, payload=payload)

    def curated(self, name: str, upstream: str, dropped: Mapping[str, Sequence[int]]) -> Manifest:
        """Keep all but some samples of a data set: reason -> places in its order."""
        import numpy as np

        from orchestrator.data.dataset import Dataset, write_choice
        from orchestrator.store.artifacts import Handle

        self.stage(name, "curate", [upstream])
        handle = Handle(self.store, self.made[upstream])
        data = Dataset.open(handle)
        gone = {place for places in dropped.values() for place in places}
        out = Path(tempfile.mkdtemp(dir=self.folder))
        kept = np.array([row not in gone for row in range(len(data))])
        write_choice(out, handle, np.packbits(kept), int(kept.sum()))
        step = {
            "operator": "min_size",
            "options": {"pixels": 32},
            "in": len(data),
            "kept": len(data) - len(gone),
            "dropped": {reason: len(places) for reason, places in dropped.items()},
            "examples": {reason: [data.uids[place] for place in places] for reason, places in dropped.items()},
        }
        report = {"in": len(data), "kept": step["kept"], "steps": [step]}
        (out / "report.json").write_text(json.dumps(report))
        return self.finish(name, out, {"samples": float(step["kept"])}, report, {"data": upstream})

    def trained(self, name: str, data: str, losses: Sequence[float], **events: int) -> Manifest:
        """A training whose loss was reported every 100 samples; `resumed` and `phase` say at which report."""
        self.stage(name, "pretrain", [data])
        self.events(name, losses, **events)
        metrics = {"loss": losses[-1], "parameters": 5e6, "parameters_without_token_table": 7e5, "samples_per_s": 50.0}
        summary = {"samples": 100 * len(losses), "epochs": 2.0, "device": "cpu", "precision": "fp32"}
        return self.finish(name, {"model.json": b"{}"}, metrics, summary, {"data": data})

    def events(self, name: str, losses: Sequence[float], resumed: int = -1, phase: int = -1) -> None:
        """What a training emits."""
        with EventWriter(self.store.storage, self.fingerprint(name), 1) as writer:
            writer.emit("phase", name="first")
            for number, loss in enumerate(losses):
                metrics = {"loss": loss, "learning_rate": 1e-3, "grad_norm": 1.0, "data_wait_share": 0.02}
                writer.emit("report", samples=100 * (number + 1), metrics=metrics)
                writer.emit("progress", done=100 * (number + 1), total=400, unit="samples")
                if number == phase:
                    writer.emit("phase", name="second")
                if number == resumed:
                    writer.emit("resumed", samples=100 * (number + 1), generation=2)

    def log(self, name: str, text: str) -> None:
        """What a stage printed."""
        with LogWriter(self.store.storage, self.fingerprint(name), 1) as log:
            log.write(text)

    def run(self, recipe: str = "name: lab\n", name: str = "lab", **state: Any) -> Run:
        """The run's record, as its engine (this process) would leave it."""
        again = ["lab.yaml", "-s", "stages.a.steps=5"]
        run = create_run(self.store, name, recipe, {"name": name, "again": again, "stages": self.stages})
        run.write_state({**this_process().record(), "t": time.time(), "stages": self.states, **state})
        return run

    def page(self, **fields: Any) -> str:
        """The page of the run."""
        return page(self.run(**fields))
