"""`orch plan`: each stage, whether it is there, why not, with what, and how long."""

from __future__ import annotations

import json

import click

from orchestrator.cli import options


@click.command()
@click.argument("recipe", type=click.Path())
@options.overrides
@options.store
@options.until
@options.rerun
@options.smoke
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def plan(
    recipe: str,
    overrides: tuple[str, ...],
    store: str | None,
    until: str | None,
    rerun: tuple[str, ...],
    smoke: bool,
    as_json: bool,
) -> None:
    """What `orch submit RECIPE` would do. Nothing is started; neither torch nor Ray is loaded."""
    from orchestrator.engine.planning import request
    from orchestrator.plan.explain import explain

    wanted = request(recipe, overrides, [until] if until else [], rerun, smoke)
    opened = options.open_store(store)
    explanation = explain(wanted.compile(opened), opened.find, opened.manifests)
    if as_json:
        click.echo(json.dumps(explanation.to_json(), indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False)  # an arm's name, `arms[seed=0]`, reads like markup
    for line in wanted.said:
        console.print(line)
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "kind", "state", "why", "with", "time"):
        table.add_column(column, overflow="fold", no_wrap=column != "why")
    changed = []
    for status in explanation.stages:
        needs = f"{status.resources.cpus:g} CPU" + (f" {status.resources.gpus:g} GPU" if status.resources.gpus else "")
        needs += f" ×{status.resources.workers}" if status.resources.workers > 1 else ""
        why, estimate = "; ".join(status.reasons), options.duration(status.estimate_s)
        table.add_row(status.stage, status.kind, status.state, why, needs, estimate)
        if status.code_changed:
            changed.append(status.stage)
    console.print(table)
    for stage in changed:
        console.print(f"{stage}: made by other code of the same version; `orch submit --rerun {stage}` makes it anew")
    running = [status for status in explanation.stages if status.state != "cached"]
    if not running:
        console.print("everything is there: submitting starts nothing")
    elif explanation.estimate_s is not None:
        console.print(f"about {options.duration(explanation.estimate_s)} one after another, by past runs")
