"""`orch show`: what a run or an artifact is, where it comes from and what was made of it; what recipes may say."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli import options

if TYPE_CHECKING:
    from orchestrator.errors import UserError
    from orchestrator.store.artifacts import Manifest, Store
    from orchestrator.store.lineage import Lineage
    from orchestrator.store.runs import Run


@click.command()
@click.argument("what")
@click.option("--lineage", is_flag=True, help="What it was made from, back to the data, and everything made of it.")
@click.option("--diff", is_flag=True, help="The uncommitted changes of the code that made it.")
@click.option("--json", "as_json", is_flag=True, help="For programs: the manifest, or with --lineage nodes and edges.")
@click.option("--sheet", type=click.Path(dir_okay=False), help="Of a data set: write a contact sheet (PNG) here.")
@options.store
def show(what: str, lineage: bool, diff: bool, as_json: bool, sheet: str | None, store: str | None) -> None:
    """WHAT is a run (its id, `last`), a stage, RUN/STAGE, a fingerprint's beginning, a kept name, or something
    external (a data set's source, its content digest, `open_clip:...`); or `methods`, `schema`, or a stage kind,
    method, operator or task (`orch show distill`), for what can be written there.
    """
    if what == "methods":
        _tables()
        return
    if what == "schema":
        from orchestrator.recipe.json_schema import schema
        from orchestrator.stages import KINDS

        click.echo(json.dumps(schema(KINDS), indent=1))
        return
    config = _configuration(what)
    if config is not None:
        _fields(config)
        return
    from orchestrator.errors import UserError
    from orchestrator.store.lookup import find
    from orchestrator.store.runs import Run

    opened = options.open_store(store)
    try:
        found = find(opened, what)
    except UserError as error:
        _external(opened, what, as_json, error)
        return
    if lineage:
        _lineage(opened, found, as_json)
    elif isinstance(found, Run):
        _run(found, as_json)
    elif diff:
        _diff(found)
    elif sheet is not None:
        _sheet(opened, found, sheet)
    elif as_json:
        click.echo(found.to_json().decode())
    else:
        _artifact(found)
        if is_dataset(found):
            from orchestrator.cli.dataset import describe

            describe(opened, found)


def _sheet(store: Store, found: Manifest, path: str) -> None:
    from orchestrator.errors import UserError

    if not is_dataset(found):
        raise UserError(f"{found.kind} '{found.stage}' is not a data set", "a contact sheet shows samples of one")
    from pathlib import Path

    from orchestrator.data.dataset import Dataset
    from orchestrator.report import contact_sheet
    from orchestrator.store.artifacts import Handle

    contact_sheet.write(Dataset.open(Handle(store, found)), Path(path))
    click.echo(path)


def is_dataset(manifest: Manifest) -> bool:
    """Whether an artifact is a Dataset."""
    from orchestrator.recipe.schema import Dataset
    from orchestrator.stages import KINDS

    outputs = getattr(KINDS.get(manifest.kind), "outputs", {})
    return outputs.get("default") is Dataset


def _external(store: Store, what: str, as_json: bool, unknown: UserError) -> None:
    """What was made of external data or weights of that name or identity; the error if there is none."""
    from orchestrator.cli.lineage import external_trees
    from orchestrator.stages import KINDS

    known = _read(store)
    found = known.find_external(what)
    if not found:
        raise unknown
    if as_json:
        click.echo(json.dumps({**known.to_json(found, KINDS), "names": found}, indent=1))
    else:
        external_trees(known, found, KINDS)


def _lineage(store: Store, found: Run | Manifest, as_json: bool) -> None:
    from orchestrator.cli.lineage import artifact_trees, run_trees
    from orchestrator.stages import KINDS
    from orchestrator.store.lookup import run_artifacts, runs_with
    from orchestrator.store.runs import Run

    known = _read(store)
    made = run_artifacts(store, found) if isinstance(found, Run) else {}
    if as_json:
        of = [m.fingerprint for m in made.values()] if isinstance(found, Run) else [found.fingerprint]
        click.echo(json.dumps(known.to_json(of, KINDS), indent=1))
    elif isinstance(found, Run):
        run_trees(known, found, made, KINDS)
    else:
        artifact_trees(known, found, runs_with(store, found.fingerprint), KINDS)


def _read(store: Store) -> Lineage:
    """The store's lineage; damaged manifests are named and left out."""
    from orchestrator.store.lineage import Lineage

    known = Lineage.read(store)
    for error in known.damaged.values():
        click.echo(f"left out: {error}", err=True)
    return known


def _diff(manifest: Manifest) -> None:
    """The changes as a patch on stdout; what is to be said of them on stderr."""
    code = manifest.provenance.get("code", {})
    if not code.get("commit"):
        click.echo("the code was not in a git checkout: its changes are not known", err=True)
        return
    click.echo(f"on top of {code['commit']}" + ("" if code.get("diff") else ", without changes"), err=True)
    click.echo(code.get("diff", ""), nl=False)
    if code.get("diff_truncated"):
        click.echo(f"cut off here; all of it has the SHA-256 {code['diff_sha256']}", err=True)


def _configuration(name: str) -> Any | None:
    """The stage kind, method, operator or task of that name."""
    from orchestrator.curation import OPERATORS
    from orchestrator.evaluation import TASKS
    from orchestrator.methods import METHODS
    from orchestrator.stages import KINDS

    return next((table[name] for table in (KINDS, METHODS, OPERATORS, TASKS) if name in table), None)


def _fields(config: Any) -> None:
    """What can be written under a stage kind, method, operator or task."""
    from orchestrator.recipe.reference import describe

    click.echo(" ".join((config.__doc__ or "").split()))
    for field in describe(config):
        note = "; changes no result" if field.execution else ""
        click.echo(f"\n  {field.name}: {field.type}, default {field.default}{note}")
        click.echo(click.wrap_text(field.text, width=96, initial_indent="      ", subsequent_indent="      "))


def _run(run: Run, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"id": run.id, "plan": run.plan(), **run.state()}, indent=1))
        return
    click.echo(run.id)
    for name, stage in run.state().get("stages", {}).items():
        click.echo(f"  {name:<20} {stage['kind']:<10} {stage['state']:<9} {(stage['fingerprint'] or '')[:12]}")
    click.echo(f"\n{run.recipe()}")


def _artifact(manifest: Manifest) -> None:
    from orchestrator.cli.lineage import cost
    from orchestrator.stages import KINDS
    from orchestrator.store.lineage import facts, inputs

    known = facts(manifest, KINDS.get(manifest.kind))
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(manifest.finished))
    click.echo(
        f"{manifest.kind} '{manifest.stage}' {manifest.fingerprint[:12]}, content {manifest.content_digest[:12]}"
    )
    click.echo(f"finished {when} after {manifest.wall_s:.1f} s of work, {cost(manifest.cost)}")
    click.echo(f"recipe: stage {manifest.stage} of run {manifest.run} (`orch show {manifest.run}`)")
    for use in inputs(manifest):
        click.echo(f"  from {use.role} = {use.name} ({use.kind} {use.fingerprint[:12]})")
    if known["commit"]:
        changes = " with uncommitted changes (`--diff` shows them)" if known["uncommitted_changes"] else ""
        click.echo(f"code {known['commit'][:12]}{changes}")
    _mapping("seeds", known["seeds"])
    _mapping("settings", manifest.payload.get("config", {}))
    _mapping("metrics", {k: v for k, v in manifest.metrics.items() if "/" not in k} or manifest.metrics)
    budget = {name: manifest.provenance.get(name) for name in ("cpus", "gpus", "workers", "threads")}
    host = {"device": known["device"], **budget, **manifest.provenance.get("host", {})}
    _mapping("machine", {name: value for name, value in host.items() if value is not None})
    _mapping("packages", known["packages"])
    click.echo("files")
    for name, file in manifest.files.items():
        click.echo(f"  {name:<40} {file.size:>12,} bytes  {file.sha256[:12]}")


def _mapping(title: str, values: Mapping[str, Any]) -> None:
    if values:
        click.echo(title)
    for name, value in values.items():
        shown = f"{value:.6g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False, default=str)
        click.echo(f"  {name:<40} {shown}")


def _tables() -> None:
    from orchestrator.curation import OPERATORS
    from orchestrator.evaluation import TASKS
    from orchestrator.methods import METHODS
    from orchestrator.stages import KINDS

    for title, table in (("stages", KINDS), ("methods", METHODS), ("operators", OPERATORS), ("tasks", TASKS)):
        click.echo(title)
        for name in table:
            first = (table[name].__doc__ or "").strip().splitlines()[0]
            click.echo(f"  {name:<12} {first}")
