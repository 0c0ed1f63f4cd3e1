"""A benchmark's Report as tables: means a model with their intervals, and a line a task; on a terminal and on a page.

Nothing is computed here that is not in the Report. A mean is called an average of DataComp's only where all of its
tasks were evaluated; what differs from DataComp's list, in sets or in sizes, is said below the table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.store.artifacts import Handle

FILE = "benchmark.json"
MODELS = 3
"""Models beside each other in a terminal's table of tasks."""
TITLES = {
    "imagenet": "ImageNet",
    "shifts": "6 ImageNet shifts",
    "vtab": "13 of VTAB",
    "retrieval": "3 of retrieval",
    "average_of_38": "average of 38",
}


@dataclass(frozen=True)
class Benchmark:
    """A Report, opened: what to call its models, and its record (stages/benchmark/run.py)."""

    names: Sequence[str]
    record: Mapping[str, Any]

    @property
    def means(self) -> dict[str, str]:
        """Means by their name in the record, with what to call them."""
        return {name: TITLES.get(name, name.replace("_", " ")) for name in self.record["means"]}

    def mean(self, model: int, name: str) -> tuple[str, str]:
        """A mean and its interval, in percent."""
        found = self.record["models"][model]["means"][name]
        return percent(found["value"]), f"{percent(found['low'])}-{percent(found['high'])}"

    def lines(self) -> Iterator[tuple[list[str], list[tuple[str, str]]]]:
        """Of each task its name, figure, size and chance; then each model's figure and its interval, in percent."""
        for task in self.record["tasks"]:
            found = [model["tasks"][task["key"]] for model in self.record["models"]]
            chance = percent(task["chance"])
            yield (
                [task["name"], task["metric"], f"{task['size']:,}", chance],
                [(percent(one["value"]), f"{percent(one['low'])}-{percent(one['high'])}") for one in found],
            )

    def remarks(self) -> Iterator[str]:
        """What a reader must know of the figures."""
        missing, tasks = self.record["missing"], self.record["tasks"]
        if missing:
            yield f"{len(missing)} of {len(missing) + len(tasks)} sets were not there: {', '.join(missing)}"
        other = [task for task in tasks if task["expected_size"] not in (None, task["size"])]
        if other:
            sizes = (f"{t['key']} {t['size']:,} instead of {t['expected_size']:,}" for t in other)
            yield f"Sizes other than in DataComp's list: {', '.join(sizes)}"
        intervals = self.record["intervals"]
        yield f"Intervals: {intervals['level']:.0%}, bootstrap over the samples, {intervals['samples']:,} draws"


def load(report: Handle, names: Mapping[str, str] | None = None) -> Benchmark:
    """Open a Report. `names`: by input key (`models.0`) what to call the models, else as the manifest does."""
    record = json.loads(report.read(FILE))
    keys = [f"models.{place}" for place in range(len(record["models"]))]
    return Benchmark([(names or {}).get(key) or report.manifest.inputs[key]["name"] for key in keys], record)


def render(benchmark: Benchmark) -> RenderableType:
    """The tables for a terminal of 100 columns."""
    parts: list[RenderableType] = [Text("Benchmark, %", style="bold"), _means(benchmark)]
    for first in range(0, len(benchmark.names), MODELS):
        parts += [Text(""), _tasks(benchmark, range(first, min(first + MODELS, len(benchmark.names))))]
    return Group(*parts, *(Text(f" {line}", style="dim") for line in benchmark.remarks()))


def _means(benchmark: Benchmark) -> Table:
    table = _table("model", *benchmark.means.values())
    for place, name in enumerate(benchmark.names):
        cells = [benchmark.mean(place, mean) for mean in benchmark.means]
        table.add_row(Text(name), *(Text.assemble(value, (f"\n{between}", "dim")) for value, between in cells))
    return table


def _tasks(benchmark: Benchmark, places: range) -> Table:
    table = _table("task", "figure", "samples", "chance", *(benchmark.names[place] for place in places))
    for facts, found in benchmark.lines():
        table.add_row(*(Text(fact) for fact in facts), *(Text(found[place][0]) for place in places))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    table.add_column(first, overflow="fold", max_width=23)
    for head in others:
        table.add_column(Text(head), justify="right", overflow="fold", max_width=21)
    return table


def percent(share: float | None) -> str:
    """A share in percent; a dash where there is none."""
    return "-" if share is None else f"{100 * share:.1f}"
