"""`orch submit`: run a recipe, then show what came of it and where to look further."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

import click

from orchestrator.cli import options

if TYPE_CHECKING:
    from orchestrator.engine.observe import RunResult

DELIVERY_S = 20.0
"""How long the command waits for MLflow to have everything before it ends; what is left is delivered on its own."""


@click.command()
@click.argument("recipe", type=click.Path())
@options.overrides
@options.store
@options.until
@options.rerun
@options.smoke
@click.option("--no-mlflow", is_flag=True, help="Do not tell MLflow.")
def submit(
    recipe: str,
    overrides: tuple[str, ...],
    store: str | None,
    until: str | None,
    rerun: tuple[str, ...],
    smoke: bool,
    no_mlflow: bool,
) -> None:
    """Run what is not there yet of RECIPE.

    Ctrl-C or SIGTERM once: running stages checkpoint and stop; twice: now. Submitting again goes on from there.
    """
    from orchestrator import api

    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    result = api.submit(
        recipe,
        store=options.store_url(store),
        overrides=overrides,
        until=until,
        rerun=rerun,
        smoke=smoke,
        tracking=not no_mlflow,
    )
    _show(result, mlflow=not no_mlflow)
    sys.exit(0 if result.ok else 130 if result.cancelled else 1)


def _show(result: RunResult, mlflow: bool) -> None:
    """The final tables and pictures, and the addresses."""
    from rich.console import Console

    from orchestrator.report.summary import reports

    console = Console() if sys.stdout.isatty() else Console(width=100)
    for report in reports(result.manifests, options.open_store(result.store), console.width):
        console.print(report.tables)
        for picture in report.pictures:
            console.print(f"picture: {picture}", soft_wrap=True)
    if mlflow:
        from orchestrator.tracking.spool import tracking_uri, wait_delivered

        made = any(status.state == "done" for status in result.stages.values())
        late = made and not wait_delivered(result.run, DELIVERY_S)
        console.print(f"MLflow: {tracking_uri(result.store)}{' (still being told)' if late else ''}", soft_wrap=True)
    if result.dashboard_url:
        console.print(f"Ray dashboard: {result.dashboard_url}", soft_wrap=True)
    console.print("`orch ui` opens both")
