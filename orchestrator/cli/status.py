"""`orch status`, `orch logs`, `orch cancel`: runs, while they go on and afterwards, as the store has them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli import options

if TYPE_CHECKING:
    from rich.console import RenderableType

    from orchestrator.engine.verdict import RunView
    from orchestrator.store.artifacts import Store
    from orchestrator.store.runs import Run

WATCH_S = 2.0
FOLLOW_S = 0.5
REMOTE_FOLLOW_S = 2.0


@click.command()
@click.argument("run", required=False)
@click.option("-n", "--last", default=50, show_default=True, help="So many runs, the newest.")
@click.option("--json", "as_json", is_flag=True, help="For programs: the same as JSON.")
@click.option("--watch", is_flag=True, help="Show it again every two seconds, until what is shown is over.")
@options.store
def status(run: str | None, last: int, as_json: bool, watch: bool, store: str | None) -> None:
    """Every run, or the stages of one (an id, a part of it, or `last`) with what they wait for, why they are slow, and
    what failed.
    """
    from orchestrator.engine.verdict import examine, is_over, overview
    from orchestrator.store.runs import find_run, list_runs

    opened = options.open_store(store)

    def look() -> list[RunView]:
        if run is not None:
            return [examine(find_run(opened, run))]
        return overview(list_runs(opened)[:last])

    def page(views: list[RunView]) -> RenderableType:
        return _run_page(views[0]) if run is not None else _table(views, opened)

    if as_json:
        _print_json(look(), one=run is not None)
    elif watch:
        _watch(look, page, over=lambda views: all(is_over(view) for view in views))
    else:
        from rich.console import Console

        Console(markup=False).print(page(look()))  # an arm's name, `arms[seed=0]`, reads like markup
    if not as_json:
        _say_deliveries()


def _print_json(views: list[RunView], one: bool) -> None:
    from dataclasses import asdict

    found = [asdict(view) for view in views]
    click.echo(json.dumps(found[0] if one else found, indent=1))


def _watch(
    look: Callable[[], list[RunView]], page: Callable[[list[RunView]], RenderableType], over: Callable[..., bool]
) -> None:
    from rich.console import Console
    from rich.live import Live

    views = look()
    with Live(page(views), console=Console(markup=False), auto_refresh=False) as live:
        while not over(views):
            time.sleep(WATCH_S)
            views = look()
            live.update(page(views), refresh=True)


def _table(views: list[RunView], store: Store) -> RenderableType:
    """Every run in one table."""
    from rich.table import Table

    if not views:
        return f"no runs in {store.url} yet"
    table = Table(box=None, pad_edge=False)
    for column in ("run", "state", "stages", "now", "samples/s", "started", "took", "why"):
        table.add_column(column, overflow="fold")
    for view in views:
        table.add_row(
            view.run,
            view.state,
            f"{view.done}/{view.total}",
            ", ".join(view.now),
            _rate(view.samples_per_s if view.now else None),
            time.strftime("%m-%d %H:%M", time.localtime(view.started)),
            options.duration(view.took_s),
            _plain(view.why),
        )
    return table


def _run_page(view: RunView) -> RenderableType:
    """A run's stages, then what is to be said of each."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("stage", "kind", "state", "progress", "rate", "left", "time", "attempts"):
        table.add_column(column)
    below: list[RenderableType] = []
    for stage in view.stages:
        table.add_row(
            stage.name,
            stage.kind,
            stage.state,
            _share(stage),
            _rate(stage.samples_per_s) or _rate(stage.rate, stage.unit),
            options.duration(stage.left_s),
            options.duration(stage.took_s),
            str(stage.attempts or ""),
        )
        below += [Text(f"{stage.name}: {verdict}") for verdict in stage.verdicts]
        below += [Text(f"    {line}", style="dim") for line in stage.log]
    head = [Text(f"{view.run}  {view.state}" + (f"  {view.why}" if view.state == "interrupted" else ""))]
    tail = [Text(f"go on with: {view.again}", overflow="fold")] if view.again else []
    return Group(*head, table, *below, *tail)


def _share(stage: Any) -> str:
    if stage.share is None or stage.state in ("waiting", "skipped"):
        return ""
    of = f" of {stage.total:,.0f} {stage.unit}" if stage.total and stage.state in ("running", "elsewhere") else ""
    return f"{stage.share:.0%}{of}"


def _rate(value: float | None, unit: str = "samples") -> str:
    return "" if not value else f"{value:,.0f} {unit or 'units'}/s" if unit != "samples" else f"{value:,.0f}/s"


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)


def _say_deliveries() -> None:
    """What MLflow has not been told yet, and why."""
    from orchestrator.tracking.spool import waiting

    for one in waiting():
        click.echo(f"MLflow: {one.text()}", err=True)


@click.command()
@click.argument("run")
@click.argument("stage", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on as lines come, until the stage is final.")
@click.option("--events", is_flag=True, help="For programs: events as lines of JSON instead of the log.")
@options.store
def logs(run: str, stage: str | None, follow: bool, events: bool, store: str | None) -> None:
    """What a stage and its workers printed, or all stages of a run; RUN is an id, a part of it, or `last`."""
    from orchestrator.store.runs import find_run

    opened = options.open_store(store)
    found = find_run(opened, run)
    if stage is not None:
        _check_stage(found, stage)
    every_s = FOLLOW_S if opened.storage.local("work") is not None else REMOTE_FOLLOW_S
    stream = _Streams(found, stage, events)
    while True:
        going_on = stream.show()
        if not (follow and going_on):
            return
        time.sleep(every_s)


class _Streams:
    """Logs or events of a run's stages, from where they were shown the last time."""

    def __init__(self, run: Run, stage: str | None, events: bool) -> None:
        self._run, self._stage, self._events = run, stage, events
        self._readers: dict[str, Any] = {}
        self._over: set[str] = set()
        self._attempt: dict[str, int] = {}

    def show(self) -> bool:
        """Print what came; whether more can come. A stage that is final is read once more and then left alone."""
        from orchestrator.engine.verdict import is_final, run_state
        from orchestrator.store.runs import engine_is_gone

        state = self._run.state()
        stages = state.get("stages", {})
        chosen = stages if self._stage is None else {self._stage: stages[self._stage]}
        for name, stage in chosen.items():
            if stage["fingerprint"] is not None and name not in self._over:
                self._show(name, stage["fingerprint"])
            if is_final(stage):
                self._over.add(name)
        if chosen and all(map(is_final, chosen.values())):
            return False
        if engine_is_gone(state) and run_state(self._run, state, time.time()) != "starting":
            click.echo("the run's engine is gone; `orch status` says how to go on", err=True)
            return False
        return True

    def _show(self, name: str, fingerprint: str) -> None:
        if name not in self._readers:
            self._readers[name] = self._reader(fingerprint)
        if self._events:
            for generation, event in self._readers[name].numbered():
                about = {"run": self._run.id, "stage": name, "generation": generation}
                click.echo(json.dumps(about | event, ensure_ascii=False))
            return
        for generation, text in self._readers[name].parts():
            if self._attempt.setdefault(name, generation) != generation:
                self._attempt[name] = generation
                self._say(name, f"--- begun again (generation {generation}) ---")
            for line in text.splitlines():
                self._say(name, line)

    def _reader(self, fingerprint: str) -> Any:
        from orchestrator.store.events import EventReader
        from orchestrator.store.logs import LogReader

        return (EventReader if self._events else LogReader)(self._run.store.storage, fingerprint)

    def _say(self, name: str, line: str) -> None:
        click.echo(line if self._stage is not None else f"{name} | {line}")


def _check_stage(run: Run, stage: str) -> None:
    """UserError unless the run has a stage of that name that has begun."""
    from orchestrator.errors import UserError

    stages: Mapping[str, Any] = run.state().get("stages", {})
    if stage not in stages:
        raise UserError(f"run {run.id} has no stage '{stage}'", f"its stages are: {', '.join(stages)}")
    if stages[stage]["fingerprint"] is None:
        raise UserError(f"stage '{stage}' has not begun", stages[stage]["reason"])


@click.command()
@click.argument("run", default="last")
@options.store
def cancel(run: str, store: str | None) -> None:
    """Ask a run to checkpoint and stop; submitting its recipe again goes on."""
    from orchestrator.store.runs import find_run

    found = find_run(options.open_store(store), run)
    asked = found.cancel("orch cancel")
    click.echo(f"{found.id}: " + ("asked to stop; its stages checkpoint first" if asked else "was asked before"))
