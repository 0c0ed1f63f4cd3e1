"""`orch report`: the HTML page of a run, made from its store, for one that goes on, failed or is long finished."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli import options


@click.command()
@click.argument("run", default="last")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write it here instead of beside the run.")
@options.store
def report(run: str, output: Path | None, store: str | None) -> None:
    """One self-contained HTML page of RUN: its id, a part of it, or `last`."""
    from orchestrator.report.page import page, place
    from orchestrator.store.runs import find_run

    found = find_run(options.open_store(store), run)
    html = page(found)
    if output is None:
        storage = found.store.storage
        storage.put(place(found), html.encode())
        click.echo(storage.where(place(found)))
    else:
        output.write_text(html, encoding="utf-8")
        click.echo(output)
