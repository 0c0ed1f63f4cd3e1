"""Tiny WebDataset shards, made member by member, and Datasets of them in a store."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

from PIL import Image

from orchestrator.data import source
from orchestrator.data.dataset import Dataset
from orchestrator.plan.types import Resources
from orchestrator.stages.base import Outcome, StageConfig, StageContext
from orchestrator.stages.dataset.config import DatasetStage
from orchestrator.store.artifacts import Handle, Manifest, Store

Members = Sequence[tuple[str, bytes]]


def image(number: int, size: int = 8, kind: str = "PNG") -> bytes:
    """A picture of one colour, transparent on the left."""
    picture = Image.new("RGBA", (size, size), (number * 53 % 256, number * 91 % 256, number * 17 % 256, 255))
    picture.paste((0, 0, 0, 0), (0, 0, size // 2, size))
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


def sample(key: str, number: int, caption: str | None = None, facts: Mapping | None = None) -> Members:
    members = [(f"{key}.png", image(number)), (f"{key}.txt", (caption or f"thing number {number}").encode())]
    return [*members, (f"{key}.json", json.dumps(facts).encode())] if facts is not None else members


def write_shard(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_samples(folder: Path, numbers: Sequence[int], shards: int = 2, facts=lambda number: None) -> Path:
    """Samples dealt over shards in the order given."""
    for shard in range(shards):
        dealt = enumerate(numbers[shard::shards])
        members = [m for place, n in dealt for m in sample(f"{place:04d}-{n:04d}", n, facts=facts(n))]
        write_shard(folder / f"{shard:05d}.tar", members)
    return folder


def open_store(path: Path | str) -> Store:
    return Store.open(str(path))


def places(store: Store, config: StageConfig) -> dict[str, str]:
    """Where the store keeps a stage's sources."""
    return {name: source.known(name, store).place for name in config.external_sources()}


def run_stage(
    store: Store,
    config: StageConfig,
    folder: Path,
    kind: str,
    fingerprint: str,
    inputs: Mapping[str, Handle] | None = None,
    sources: Mapping[str, str] | None = None,
) -> tuple[Handle, Outcome]:
    """Run a stage's runner and publish what it wrote, as the engine does."""
    from importlib import import_module

    out = folder / "out" / fingerprint
    out.mkdir(parents=True)
    module, _, function = config.runner.partition(":")
    events = SimpleNamespace(emit=lambda type, **fields: None)
    ctx = StageContext(
        "run",
        kind,
        kind,
        fingerprint,
        config,
        inputs or {},
        {},
        store,
        out,
        folder,
        None,
        Resources(),
        events,
        lambda: None,
        places(store, config) if sources is None else sources,
    )
    outcome = getattr(import_module(module), function)(ctx)
    return publish(store, out, kind, fingerprint, outcome), outcome


def publish(store: Store, out: Path, kind: str, fingerprint: str, outcome: Outcome) -> Handle:
    manifest = Manifest(
        kind=kind,
        fingerprint=fingerprint,
        attempt="1",
        generation=1,
        stage=kind,
        run="run",
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
    return Handle(store, store.publish(manifest, out, outcome.undeclared))


def make_dataset(tmp_path: Path, location: str, store: Store | None = None, **fields) -> Dataset:
    """Index a source and run the dataset stage on it."""
    store = store or open_store(tmp_path / "store")
    source.prepare(location, store)
    handle, _ = run_stage(store, DatasetStage(source=location, **fields), tmp_path, "dataset", "f1")
    return Dataset.open(handle)
