"""Results: every model's figures with intervals and chance, accuracy against size and cost, and paired comparisons."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.report import words
from orchestrator.report.blocks import Block, Cell, Plot, Plots, Table, Text
from orchestrator.report.plots import Point, against
from orchestrator.report.record import RunRecord, StageRecord
from orchestrator.report.table import Column, Scores, compared, figure_name, groups, header, lead, load, sizes
from orchestrator.store.artifacts import Manifest
from orchestrator.store.lineage import Lineage, total_cost


def show(run: RunRecord, stages: list[StageRecord]) -> Iterator[Block]:
    """Each Report's tables and plots."""
    for stage in stages:
        handle = stage.handle
        if handle is None:
            continue
        if not {"metrics.json", "paired.json"} <= set(handle.manifest.files):
            yield Text(f"{stage.name}: no tables are known for what this stage writes.")
            continue
        used = {key: use for key, use in handle.manifest.inputs.items() if key.startswith("models.")}
        made = {key: run.store.find(use["kind"], use["fingerprint"]) for key, use in used.items()}
        models = {key: manifest for key, manifest in made.items() if manifest is not None}
        names = {key: run.name_of(use["fingerprint"], use["name"]) for key, use in used.items()}
        scores = load(handle, {key: manifest.metrics for key, manifest in models.items()}, names)
        several = f"{stage.name}: " if len(stages) > 1 else ""
        costs = {place: models.get(f"models.{place}") for place in range(len(scores.rows))}
        yield _models(run, scores, costs, several)
        for title, columns in groups(scores):
            yield _figures(scores, columns, several + title)
        yield from _comparison(scores)
        yield from _plots(scores, costs, several)


def _models(run: RunRecord, scores: Scores, made: dict[int, Manifest | None], several: str) -> Table:
    rows = []
    behind = Lineage.behind(run.store, [manifest for manifest in made.values() if manifest is not None])
    for place, row in enumerate(scores.rows):
        manifest = made[place]
        costs = ["", ""]
        if manifest is not None:
            costs = [
                words.hours(cost.cpu_hours, cost.gpu_hours)
                for cost in (manifest.cost, total_cost(behind.ancestors([manifest.fingerprint]).values()))
            ]
        rows.append(
            [
                row.name,
                words.millions(row.figures["parameters"]),
                words.millions(row.figures["parameters_without_token_table"]),
                *costs,
            ]
        )
    columns = ("model", "parameters", "without token table", "cost of its training", "with all it was made from")
    return Table(columns, rows, title=f"{several}Models")


def _figures(scores: Scores, columns: list[Column], title: str) -> Table:
    rows: list[list[Cell | str]] = []
    for row in scores.rows:
        cells: list[Cell | str] = [row.name]
        for measure, k, _ in columns:
            name = figure_name(measure, k)
            low, high = (100 * row.figures[f"{name}{end}"] for end in (".low", ".high"))
            cells.append(Cell(f"{100 * row.figures[name]:.1f}", f"{low:.1f}–{high:.1f}"))
        rows.append(cells)
    rows.append(["chance", *(f"{100 * chance:.2f}" for _, _, chance in columns)])
    level, samples = scores.intervals["level"], scores.intervals["samples"]
    how = f"Beneath each figure its {level:.0%} interval: bootstrap over the samples, {samples:,} draws."
    return Table(
        ("model", *(header(measure, k) for measure, k, _ in columns)),
        rows,
        title=title,
        note=". ".join([*sizes(columns), how]),
    )


def _comparison(scores: Scores) -> Iterator[Block]:
    """The leading figure of each model over each other's."""
    chosen = lead(scores)
    if len(scores.rows) < 2 or chosen is None:
        return
    measure, k, _ = chosen
    others = compared(scores)
    rows: list[list[Cell | str]] = []
    for one, row in enumerate(scores.rows):
        cells: list[Cell | str] = [row.name]
        for other in others:
            if one == other:
                cells.append("")
                continue
            figure = scores.pairs[one, other][figure_name(measure, k)]
            ratio, low, high = figure["ratio"], figure["ratio.low"], figure["ratio.high"]
            if ratio is None:
                cells.append("–")
            else:
                between = f"{'?' if low is None else f'{low:.2f}'}–{'∞' if high is None else f'{high:.2f}'}"
                cells.append(Cell(f"{ratio:.2f}", between))
        rows.append(cells)
    yield Table(
        ("model", *(f"over {scores.rows[other].name}" for other in others)),
        rows,
        title=f"{header(measure, k)}: the row's model over the column's",
        note="Paired: both models answer the same samples in every draw of the bootstrap.",
    )


def _plots(scores: Scores, made: dict[int, Manifest | None], several: str) -> Iterator[Block]:
    """The leading figure's family by split, against parameters and against the cost of training."""
    chosen = lead(scores)
    if chosen is None or len(scores.rows) < 2:
        return
    family, k = chosen[0]["name"].partition(".")[0], chosen[1]
    measures = [m for m in scores.measures if m["name"].startswith(f"{family}.") and k in m["ks"]]
    sized = {place: row.figures["parameters_without_token_table"] for place, row in enumerate(scores.rows)}
    on_gpu = any(manifest is not None and manifest.cost.gpu_hours for manifest in made.values())
    hours = {
        place: manifest.cost.gpu_hours if on_gpu else manifest.cost.cpu_hours
        for place, manifest in made.items()
        if manifest is not None
    }
    unit, scale = _unit(max(hours.values(), default=0.0))
    device = "GPU" if on_gpu else "CPU"
    costs = {place: value * scale for place, value in hours.items()}
    axes = [("parameters without the token table", sized), (f"{device} {unit} of its own training", costs)]
    for title, (label, places) in zip(("Accuracy against size", "Accuracy against cost"), axes):
        if len(places) > 1:
            plots = [_plot(scores, (m, k, m["chance"][m["ks"].index(k)]), label, places) for m in measures]
            yield Plots(plots, title=several + title, note="Lines are intervals; dashed: chance.")


def _plot(scores: Scores, column: Column, label: str, places: dict[int, float]) -> Plot:
    measure, k, chance = column
    name = figure_name(measure, k)
    points = [
        Point(place, row.name, places[place], *(row.figures[f"{name}{end}"] for end in ("", ".low", ".high")))
        for place, row in enumerate(scores.rows)
        if place in places
    ]
    return Plot(header(measure, k), against(points, label, chance))


def _unit(most_hours: float) -> tuple[str, float]:
    """A unit of time in which the largest is above one, and how many of it an hour has."""
    if most_hours >= 1:
        return "hours", 1.0
    return ("minutes", 60.0) if most_hours >= 1 / 60 else ("seconds", 3600.0)
