"""`orch status`, `orch logs`, `orch cancel`: runs, while they go on and afterwards, as the store has them."""

from __future__ import annotations

import time

import click

from orchestrator.cli import options


@click.command()
@click.argument("run", required=False)
@options.store
def status(run: str | None, store: str | None) -> None:
    """The newest runs, or the stages of one (an id, a part of it, or `last`)."""
    from rich.console import Console
    from rich.table import Table

    from orchestrator.store.runs import find_run, list_runs

    opened = options.open_store(store)
    table = Table(box=None, pad_edge=False)
    if run is None:
        for column in ("run", "state", "stages", "why"):
            table.add_column(column)
        for one in list_runs(opened)[:20]:
            stages = one.state().get("stages", {})
            done = sum(s["state"] in ("done", "cached") for s in stages.values())
            table.add_row(one.id, _run_state(one.state()), f"{done}/{len(stages)}", _why(stages))
        Console().print(table if table.row_count else f"no runs in {opened.url} yet")
        return
    found = find_run(opened, run)
    for column in ("stage", "kind", "state", "time", "why"):
        table.add_column(column)
    for name, stage in found.state().get("stages", {}).items():
        end = stage["finished"] or (time.time() if stage["state"] == "running" else None)
        elapsed = None if stage["started"] is None or end is None else end - stage["started"]
        why = stage["reason"] + (f" ({stage['remedy']})" if stage["remedy"] else "")
        table.add_row(name, stage["kind"], stage["state"], options.duration(elapsed), why)
    Console().print(f"{found.id}  {_run_state(found.state())}")
    Console().print(table)


def _run_state(state: dict) -> str:
    """One word for a run; `interrupted` if its engine is gone though stages are not final."""
    from orchestrator.store.runs import engine_is_gone

    states = {s["state"] for s in state.get("stages", {}).values()}
    if states & {"waiting", "elsewhere", "running"}:
        return "interrupted" if engine_is_gone(state) else "running"
    for word in ("failed", "stopped", "skipped"):
        if word in states:
            return word
    return "done" if states else "starting"


def _why(stages: dict) -> str:
    for word in ("failed", "stopped", "running", "elsewhere"):
        for name, stage in stages.items():
            if stage["state"] == word and (stage["reason"] or word == "running"):
                return f"{name}: {stage['reason'] or word}"
    return ""


@click.command()
@click.argument("run")
@click.argument("stage")
@click.option("-f", "--follow", is_flag=True, help="Go on as lines come.")
@options.store
def logs(run: str, stage: str, follow: bool, store: str | None) -> None:
    """A stage's log: what it and its workers printed. RUN is an id, a part of it, or `last`."""
    from orchestrator.errors import UserError
    from orchestrator.store.logs import LogReader
    from orchestrator.store.runs import find_run

    opened = options.open_store(store)
    found = find_run(opened, run)
    stages = found.state().get("stages", {})
    if stage not in stages:
        raise UserError(f"run {found.id} has no stage '{stage}'", f"its stages are: {', '.join(stages)}")
    fingerprint = stages[stage]["fingerprint"]
    if fingerprint is None:
        raise UserError(f"stage '{stage}' has not begun", stages[stage]["reason"])
    reader = LogReader(opened.storage, fingerprint)
    click.echo(reader.poll(), nl=False)
    while follow and found.state()["stages"][stage]["state"] in ("waiting", "running", "elsewhere"):
        time.sleep(0.5)
        click.echo(reader.poll(), nl=False)


@click.command()
@click.argument("run", default="last")
@options.store
def cancel(run: str, store: str | None) -> None:
    """Ask a run to checkpoint and stop; submitting its recipe again goes on."""
    from orchestrator.store.runs import find_run

    found = find_run(options.open_store(store), run)
    asked = found.cancel("orch cancel")
    click.echo(f"{found.id}: " + ("asked to stop; its stages checkpoint first" if asked else "was asked before"))
