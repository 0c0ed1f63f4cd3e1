"""`orch ui` and `orch cluster`: the dashboards, and the local cluster behind them."""

from __future__ import annotations

import webbrowser

import click

from orchestrator.cli import options


@click.command()
@options.store
@click.option("--no-browser", is_flag=True, help="Only print the addresses.")
def ui(store: str | None, no_browser: bool) -> None:
    """Open the Ray dashboard (past its token) and MLflow; the local cluster stays up until `orch cluster down`."""
    from orchestrator.engine.ui import open_ui
    from orchestrator.tracking.serve import serve

    click.echo("starting MLflow's page ...")
    url = serve(options.store_url(store))
    click.echo(f"MLflow: {url}")
    if no_browser:
        open_ui(say=click.echo, browser=lambda page: False)
    else:
        webbrowser.open(url)
        open_ui(say=click.echo)


@click.group()
def cluster() -> None:
    """The Ray cluster that `orch submit` starts on this machine when RAY_ADDRESS names no other."""


@cluster.command()
def status() -> None:
    """Whether it is up, and where its dashboard is."""
    from orchestrator.engine.cluster import recorded

    found = recorded()
    click.echo(f"up: {found.address}, dashboard {found.dashboard_url}" if found else "down")


@cluster.command()
def down() -> None:
    """Stop it. Stages that run on it stop at their last checkpoint; submitting again goes on."""
    from orchestrator.engine import cluster as local
    from orchestrator.tracking import serve

    click.echo("Ray: stopped" if local.down() else "Ray: it was not up")
    click.echo("MLflow's page: stopped" if serve.stop() else "MLflow's page: it was not up")
