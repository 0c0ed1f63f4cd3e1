"""`orch compare`: how two runs or two artifacts differ, field by field, down to the first cause."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli import options
from orchestrator.cli.show import is_dataset

if TYPE_CHECKING:
    from orchestrator.store.compare import Comparison, Difference, RunComparison

PROVENANCE = ("code", "packages", "host", "cost")


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@options.store
def compare(a: str, b: str, as_json: bool, store: str | None) -> None:
    """What differs between A and B (two runs, or two artifacts): settings, inputs down to the first cause, metrics,
    code, packages, machine, cost.
    """
    from orchestrator.errors import UserError
    from orchestrator.stages import KINDS
    from orchestrator.store.compare import compare_artifacts, compare_runs
    from orchestrator.store.lookup import find
    from orchestrator.store.runs import Run

    opened = options.open_store(store)
    one, other = find(opened, a), find(opened, b)
    if isinstance(one, Run) and isinstance(other, Run):
        stages_a, stages_b = ((run.id, run.plan()["stages"]) for run in (one, other))
        runs = compare_runs(stages_a, stages_b, opened.find, KINDS)
        click.echo(json.dumps(runs.to_json(), indent=1)) if as_json else _runs(runs)
    elif isinstance(one, Run) or isinstance(other, Run):
        run, artifact = (a, b) if isinstance(one, Run) else (b, a)
        raise UserError(f"'{run}' is a run and '{artifact}' an artifact", f"name a stage of the run: {run}/STAGE")
    else:
        artifacts = compare_artifacts(one, other, opened.find, KINDS)
        click.echo(json.dumps(artifacts.to_json(), indent=1)) if as_json else _artifacts(artifacts)
        if not as_json and not artifacts.same_content and is_dataset(one) and is_dataset(other):
            from orchestrator.cli.dataset import compare_samples

            compare_samples(opened, one, other)


def _artifacts(found: Comparison) -> None:
    click.echo(f"A: {found.a}\nB: {found.b}")
    if found.same:
        click.echo("one and the same artifact")
        return
    lines = [*_own(found), *_causes(found)]
    for line in lines or ["settings and inputs: no difference"]:
        click.echo(line)
    if found.same_content:
        click.echo("their content is identical, byte by byte")
    rows = [(name, d) for name in ("metrics", *PROVENANCE) for d in getattr(found, name)]
    _table([(name, d.name, *_values(d)) for name, d in rows])


def _runs(found: RunComparison) -> None:
    click.echo(f"A: {found.a}\nB: {found.b}")
    rows: list[tuple[str, ...]] = []
    provenance: dict[tuple[str, str, str, str, str], list[str]] = defaultdict(list)
    for stage, each in found.stages.items():
        if isinstance(each, str):
            click.echo(f"{stage}: {each}")
            continue
        if each.same:
            click.echo(f"{stage}: the same")
            continue
        upstream = [f"because of {name}" for name in dict.fromkeys(cause.stage for cause in each.causes)]
        own = [line.strip() for line in _own(each)]
        content = ["their content is identical"] if each.same_content else []
        click.echo(f"{stage}: {'; '.join([*own, *upstream, *content]) or 'made anew'}")
        for cause in each.causes:
            if cause.stage not in found.stages:
                click.echo(f"  {_cause(cause)}")
        rows += [("metrics", f"{stage}: {d.name}", *_values(d)) for d in each.metrics]
        for name in ("code", "packages", "host"):
            for d in getattr(each, name):
                provenance[name, d.name, *_values(d)].append(stage)
        rows += [("cost", f"{stage}: {d.name}", *_values(d)) for d in each.cost]
    compared = sum(not isinstance(each, str) and not each.same for each in found.stages.values())
    for (group, name, in_a, in_b, change), stages in provenance.items():
        where = "" if len(stages) == compared else f" ({', '.join(stages)})"
        rows.append((group, name + where, in_a, in_b, change))
    _table(rows)


def _own(found: Comparison) -> list[str]:
    seeds = [f"{d.name} {d.a} → {d.b}" for d in found.seeds]
    return [f"  {line}" for line in dict.fromkeys([*found.settings, *_unsaid(seeds, found.settings)])]


def _unsaid(lines: list[str], settings: tuple[str, ...]) -> list[str]:
    """Seeds that differ and are not among the settings' differences."""
    return [line for line in lines if not any(setting.startswith(line.split(" ")[0] + " ") for setting in settings)]


def _causes(found: Comparison) -> list[str]:
    return [f"  {_cause(cause)}" for cause in found.causes]


def _cause(cause: Any) -> str:
    return f"because of {cause.stage} (by {' → '.join(cause.path)}): {'; '.join(cause.settings)}"


def _values(difference: Difference) -> tuple[str, str, str]:
    a, b = difference.a, difference.b
    change = f"{b - a:+.4g}" if isinstance(a, int | float) and isinstance(b, int | float) else ""
    return _shown(a), _shown(b), change


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _table(rows: list[tuple[str, ...]]) -> None:
    """Columns: group (once), what, A, B, B - A."""
    if not rows:
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("", "", "A", "B", "B − A"):
        table.add_column(column, overflow="fold", justify="right" if column.startswith("B −") else "left")
    last = ""
    for group, *cells in rows:
        table.add_row(*(Text(cell) for cell in ("" if group == last else group, *cells)))
        last = group
    Console().print(table)
