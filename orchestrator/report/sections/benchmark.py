"""Benchmarks: means of each model with their intervals, and every task's figure."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.report.benchmark import FILE, Benchmark, load
from orchestrator.report.blocks import Block, Cell, Table
from orchestrator.report.record import RunRecord, StageRecord


def show(run: RunRecord, stages: list[StageRecord]) -> Iterator[Block]:
    """Each Report's two tables."""
    for stage in stages:
        handle = stage.handle
        if handle is None or FILE not in handle.manifest.files:
            continue
        used = {key: use for key, use in handle.manifest.inputs.items() if key.startswith("models.")}
        names = {key: run.name_of(use["fingerprint"], use["name"]) for key, use in used.items()}
        benchmark = load(handle, names)
        several = f"{stage.name}: " if len(stages) > 1 else ""
        yield _means(benchmark, f"{several}Means of main figures, %")
        yield _tasks(benchmark, f"{several}Tasks, %")


def _means(benchmark: Benchmark, title: str) -> Table:
    rows: list[list[Cell | str]] = [
        [name, *(Cell(*benchmark.mean(place, mean)) for mean in benchmark.means)]
        for place, name in enumerate(benchmark.names)
    ]
    return Table(("model", *benchmark.means.values()), rows, title=title)


def _tasks(benchmark: Benchmark, title: str) -> Table:
    rows: list[list[Cell | str]] = [[*facts, *(Cell(*cell) for cell in found)] for facts, found in benchmark.lines()]
    columns = ("task", "figure", "samples", "chance", *benchmark.names)
    return Table(columns, rows, title=title, note=". ".join(benchmark.remarks()))
