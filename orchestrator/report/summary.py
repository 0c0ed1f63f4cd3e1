"""What a finished run has to show: the tables and pictures of its Reports, gathered from manifests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.report import benchmark
from orchestrator.report.table import load, render
from orchestrator.store.artifacts import Handle, Manifest, Store

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Shown:
    """One Report: the stage that made it, its tables for a terminal, and local paths of its pictures."""

    stage: str
    tables: RenderableType
    pictures: tuple[Path, ...]


def reports(manifests: Mapping[str, Manifest], store: Store, width: int) -> Iterator[Shown]:
    """The Reports among a run's results, in its order, for a terminal that many characters wide."""
    for stage, manifest in manifests.items():
        handle, files = Handle(store, manifest), set(manifest.files)
        if benchmark.FILE not in files and not {"metrics.json", "paired.json"} <= files:
            continue
        made = {m.fingerprint: (name, m.metrics) for name, m in manifests.items()}
        used = {k: made[use["fingerprint"]] for k, use in manifest.inputs.items() if use["fingerprint"] in made}
        names = {key: name for key, (name, _) in used.items()}  # as this run calls them, whoever made the Report
        if benchmark.FILE in files:
            yield Shown(stage, benchmark.render(benchmark.load(handle, names)), ())
            continue
        models = {key: metrics for key, (_, metrics) in used.items()}
        pictures = tuple(handle.local(name) for name in manifest.files if name.endswith(".png"))
        yield Shown(stage, render(load(handle, models, names), width), pictures)
