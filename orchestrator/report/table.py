"""The final table: every model's size and speed, its figures with intervals and chance, and how it stands to others.

Input is a Report artifact and, by its input key (`models.0`), the manifest metrics of each model it judged; nothing is
computed here that is not in them. `load` gathers, `render` draws for a terminal of 100 columns, `table_json` gives the
same as plain values.
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

MATRIX = 4
"""Up to so many models each is compared with each; of more, each with the first only."""
Column = tuple[Mapping[str, Any], int, float]
"""A measure, one of its k, and chance."""


@dataclass(frozen=True)
class Row:
    """One model: its name, training speed in samples/s where known, and its figures by name."""

    name: str
    samples_per_s: float | None
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Scores:
    """A Report, opened.

    Attributes:
        rows: one a model, in the order of the stage's `models`.
        measures: what was asked: name, split, label, ks, sizes, chance.
        pairs: (model, against) by place -> figure -> difference and ratio with intervals.
        intervals: level, samples, seed of the bootstrap.
    """

    rows: Sequence[Row]
    measures: Sequence[Mapping[str, Any]]
    pairs: Mapping[tuple[int, int], Mapping[str, Mapping[str, float | None]]]
    intervals: Mapping[str, Any]


def load(report: Handle, models: Mapping[str, Mapping[str, float]], names: Mapping[str, str] | None = None) -> Scores:
    """Open a Report.

    Args:
        models: by input key (`models.0`), the metrics in that model's manifest; absent for external models.
        names: by input key, what to call the models; default: what the manifest calls them.
    """
    record, paired = json.loads(report.read("metrics.json")), json.loads(report.read("paired.json"))
    rows = []
    for place, figures in enumerate(record["models"]):
        key = f"models.{place}"
        name = (names or {}).get(key) or report.manifest.inputs[key]["name"]
        rows.append(Row(name, models.get(key, {}).get("samples_per_s"), figures))
    pairs = {(pair["model"], pair["against"]): pair["figures"] for pair in paired["pairs"]}
    return Scores(rows, record["measures"], pairs, record["intervals"])


def render(scores: Scores, width: int = 100) -> RenderableType:
    """The tables for a terminal that many characters wide: models, zero-shot, retrieval, comparison."""
    parts: list[RenderableType] = [Text("Models", style="bold"), _models(scores)]
    for title, columns in groups(scores):
        parts.append(Text(f"\n{title}", style="bold"))
        beside = width - min(20, max(len(row.name) for row in scores.rows))
        parts += [_figures(scores, some) for some in _fitting(columns, beside)]
        parts += [Text(f" {line}", style="dim") for line in sizes(columns)]
    parts += _comparison(scores)
    level, samples = scores.intervals["level"], scores.intervals["samples"]
    how = f"\n Under each figure its {level:.0%} interval: bootstrap over the samples, {samples:,} draws."
    parts.append(Text(how, style="dim"))
    return Group(*parts)


def groups(scores: Scores) -> Iterator[tuple[str, list[Column]]]:
    """The figures to show together, under a title; of retrieval R@1 alone."""
    titles = {"zeroshot": "Zero-shot classification, %", "retrieval": "Retrieval within one style, recall in %"}
    for prefix, title in titles.items():
        measures = [m for m in scores.measures if m["name"].startswith(f"{prefix}.")]
        columns = [(m, k, c) for m in measures for k, c in zip(m["ks"], m["chance"]) if prefix == "zeroshot" or k == 1]
        if columns:
            yield title, columns


def lead(scores: Scores) -> Column | None:
    """The figure that stands for a model: the first zero-shot top-5 there is, else the first measure's largest k."""
    ranked = sorted(scores.measures, key=lambda m: not m["name"].startswith("zeroshot."))
    measure = next((m for m in ranked if m["ks"]), None)
    if measure is None:
        return None
    k = 5 if 5 in measure["ks"] else max(measure["ks"])
    return measure, k, measure["chance"][measure["ks"].index(k)]


def compared(scores: Scores) -> range:
    """Models that each is compared with, by place."""
    return range(len(scores.rows)) if len(scores.rows) <= MATRIX else range(1)


def _fitting(columns: Sequence[Column], width: int) -> list[list[Column]]:
    """The columns in groups that fit beside the models' names."""
    tables: list[list[Column]] = []
    left = 0
    for measure, k, chance in columns:
        need = len(header(measure, k)) + 3
        if need > left:
            tables.append([])
            left = width - 4
        tables[-1].append((measure, k, chance))
        left -= need
    return tables


def table_json(scores: Scores) -> dict[str, Any]:
    """The same as plain JSON values: shares between 0 and 1."""
    return {
        "models": [
            {"name": row.name, "samples_per_s": row.samples_per_s, "figures": dict(row.figures)} for row in scores.rows
        ],
        "measures": [dict(measure) for measure in scores.measures],
        "pairs": [
            {"model": scores.rows[one].name, "against": scores.rows[other].name, "figures": dict(figures)}
            for (one, other), figures in scores.pairs.items()
        ],
        "intervals": dict(scores.intervals),
    }


def _table() -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    table.add_column("model", overflow="fold", min_width=6, max_width=20)
    return table


def _models(scores: Scores) -> Table:
    table = _table()
    for header in ("parameters", "without token table", "training samples/s"):
        table.add_column(header, justify="right")
    for row in scores.rows:
        speed = "-" if row.samples_per_s is None else f"{row.samples_per_s:,.0f}"
        figures = row.figures
        table.add_row(
            Text(row.name),
            _millions(figures["parameters"]),
            _millions(figures["parameters_without_token_table"]),
            speed,
        )
    return table


def _figures(scores: Scores, columns: Sequence[Column]) -> Table:
    table = _table()
    for measure, k, _ in columns:
        table.add_column(header(measure, k), justify="right", no_wrap=True)
    for row in scores.rows:
        cells = []
        for measure, k, _ in columns:
            name = figure_name(measure, k)
            low, high = row.figures[f"{name}.low"], row.figures[f"{name}.high"]
            cells.append(Text.assemble(_percent(row.figures[name]), (f"\n{_percent(low)}-{_percent(high)}", "dim")))
        table.add_row(Text(row.name), *cells)
    chance = [Text(_percent(value, digits=2), style="dim") for _, _, value in columns]
    table.add_row(Text("chance", style="dim"), *chance)
    return table


def sizes(columns: Sequence[Column]) -> list[str]:
    """Sizes by split, once each: both directions of retrieval share them."""
    lines = {}
    for measure, _, _ in columns:
        counts = measure["sizes"]
        if "classes" in counts:
            line = f"{counts['n']:,} images, {counts['classes']:,} classes"
            if counts["without_class"]:
                line += f", {counts['without_class']:,} left out: their concept has no training cell"
        else:
            line = f"{counts['images']:,} images, {counts['texts']:,} captions"
            if counts["styles"] > 1:
                line += f", each within its style ({counts['styles']} of them)"
        lines[measure["split"]] = f"{measure['split']}: {line}"
    return list(lines.values())


def _comparison(scores: Scores) -> list[RenderableType]:
    """Ratios of one figure between models: the first zero-shot top-5 there is, else the first measure's largest k."""
    chosen = lead(scores)
    if len(scores.rows) < 2 or chosen is None:
        return []
    measure, k, _ = chosen
    against = compared(scores)
    table = _table()
    for other in against:
        table.add_column(Text(f"/ {scores.rows[other].name}"), justify="right", overflow="fold", max_width=20)
    for one, row in enumerate(scores.rows):
        cells = [
            _ratio(scores.pairs[one, other][figure_name(measure, k)]) if one != other else "" for other in against
        ]
        table.add_row(Text(row.name), *cells)
    return [Text(f"\n{header(measure, k)}: ratio of the row's to the column's, paired", style="bold"), table]


def figure_name(measure: Mapping[str, Any], k: int) -> str:
    """A figure's name: `zeroshot.id.top5`."""
    return f"{measure['name']}.{measure['label']}{k}"


def header(measure: Mapping[str, Any], k: int) -> str:
    """A figure as a column's head: `id top-5`."""
    if measure["label"] == "top":
        return f"{measure['split']} top-{k}"
    way = "image→text" if measure["name"].endswith("image_to_text") else "text→image"
    return f"{measure['split']} {way} R@{k}"


def _ratio(figure: Mapping[str, float | None]) -> Text:
    if figure["ratio"] is None:
        return Text("-")
    low = "?" if figure["ratio.low"] is None else f"{figure['ratio.low']:.2f}"
    high = "∞" if figure["ratio.high"] is None else f"{figure['ratio.high']:.2f}"
    return Text.assemble(f"{figure['ratio']:.2f}", (f"\n{low}-{high}", "dim"))


def _millions(count: float) -> str:
    return f"{count / 1e6:,.2f} M"


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}"
