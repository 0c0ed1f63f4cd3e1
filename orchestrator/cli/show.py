"""`orch show` and `orch compare`: what a run or an artifact is, where it comes from, and how two of them differ."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli import options

if TYPE_CHECKING:
    from orchestrator.store.artifacts import Manifest
    from orchestrator.store.lookup import Ancestor


@click.command()
@click.argument("what")
@click.option("--lineage", is_flag=True, help="What it was made from, back to the data, and what was made from it.")
@click.option("--json", "as_json", is_flag=True, help="The manifest as it is.")
@options.store
def show(what: str, lineage: bool, as_json: bool, store: str | None) -> None:
    """WHAT is a run (its id, `last`), a stage, RUN/STAGE, a fingerprint's beginning; or `methods`, `schema`, or a
    stage kind, method, operator or task (`orch show distill`), for what can be written there.
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
    from orchestrator.store.lookup import find_artifact

    opened = options.open_store(store)
    run = _run(opened, what)
    if run is not None:
        _run_page(run)
        return
    manifest = find_artifact(opened, what)
    if as_json:
        click.echo(manifest.to_json().decode())
    elif lineage:
        _lineage(opened, manifest)
    else:
        _artifact(manifest)


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


def _run(store: Any, what: str) -> Any | None:
    """The run that is meant, or None where an artifact is."""
    from orchestrator.store.runs import find_run, list_runs

    if what == "last" or any(run.id == what for run in list_runs(store)):
        return find_run(store, what)
    return None


def _run_page(run: Any) -> None:
    click.echo(run.id)
    for name, stage in run.state().get("stages", {}).items():
        click.echo(f"  {name:<20} {stage['kind']:<10} {stage['state']:<9} {(stage['fingerprint'] or '')[:12]}")
    click.echo(f"\n{run.recipe()}")


def _artifact(manifest: Manifest) -> None:
    code = manifest.provenance.get("code", {})
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(manifest.finished))
    click.echo(f"{manifest.kind} '{manifest.stage}' {manifest.fingerprint[:12]}")
    click.echo(f"finished {when} after {manifest.wall_s:.1f} s of work")
    click.echo(f"made by run {manifest.run}, content {manifest.content_digest[:12]}")
    for path, use in manifest.inputs.items():
        click.echo(f"  from {path} = {use['name']} ({use['kind']} {use['fingerprint'][:12]})")
    if code.get("commit"):
        click.echo(f"code {code['commit'][:12]}{' with uncommitted changes' if code.get('dirty') else ''}")
    _mapping("settings", manifest.payload.get("config", {}))
    _mapping("metrics", {k: v for k, v in manifest.metrics.items() if "/" not in k} or manifest.metrics)
    click.echo("files")
    for name, file in manifest.files.items():
        click.echo(f"  {name:<40} {file.size:>12,} bytes  {file.sha256[:12]}")


def _mapping(title: str, values: Mapping[str, Any]) -> None:
    if values:
        click.echo(title)
    for name, value in values.items():
        shown = f"{value:.6g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False, default=str)
        click.echo(f"  {name:<40} {shown}")


def _lineage(store: Any, manifest: Manifest) -> None:
    from rich.console import Console
    from rich.tree import Tree

    from orchestrator.store.lookup import lineage, used_by

    told: set[str] = set()

    def grow(tree: Tree, ancestor: Ancestor) -> None:
        """Each artifact's own inputs once, where it first comes up."""
        for child in ancestor.inputs:
            known = bool(child.inputs) and child.fingerprint in told
            branch = tree.add(_label(child) + (", see above" if known else ""))
            if not known:
                told.add(child.fingerprint)
                grow(branch, child)

    root = lineage(store, manifest)
    tree = Tree(_label(root))
    grow(tree, root)
    Console().print(tree)
    uses = list(used_by(store, manifest))
    if uses:
        click.echo("used by")
    for role, other in uses:
        click.echo(f"  {other.stage} ({other.kind} {other.fingerprint[:12]}) as {role}")


def _label(ancestor: Ancestor) -> str:
    role = f"{ancestor.role} = " if ancestor.role else ""
    gone = "" if ancestor.manifest else ", not in this store"
    return f"{role}{ancestor.name} ({ancestor.kind} {ancestor.fingerprint[:12]}{gone})"


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


@click.command()
@click.argument("a")
@click.argument("b")
@options.store
def compare(a: str, b: str, store: str | None) -> None:
    """What differs between A and B (two runs, or two artifacts): settings, inputs, metrics, code, packages."""
    from orchestrator.store.lookup import find_artifact

    opened = options.open_store(store)
    run_a, run_b = _run(opened, a), _run(opened, b)
    if run_a is None or run_b is None:
        _differences(find_artifact(opened, a), find_artifact(opened, b))
        return
    stages_a, stages_b = (run.state().get("stages", {}) for run in (run_a, run_b))
    for name in dict.fromkeys([*stages_a, *stages_b]):
        one, other = stages_a.get(name), stages_b.get(name)
        if one is None or other is None:
            click.echo(f"{name}: only in {(run_a if other is None else run_b).id}")
        elif one["fingerprint"] == other["fingerprint"]:
            click.echo(f"{name}: the same")
        else:
            made = [opened.find(s["kind"], s["fingerprint"]) for s in (one, other) if s["fingerprint"]]
            done = [manifest for manifest in made if manifest is not None]
            click.echo(f"{name}:" if len(done) == 2 else f"{name}: differs; not finished in both")
            if len(done) == 2:
                _differences(*done)


def _differences(a: Manifest, b: Manifest) -> None:
    from orchestrator.plan.diff import diff
    from orchestrator.stages import KINDS

    if a.kind != b.kind:
        click.echo(f"  a {a.kind} and a {b.kind}: their settings have nothing in common")
    names_a, names_b = ({key: str(use["name"]) for key, use in m.inputs.items()} for m in (a, b))
    lines = diff(a.payload, b.payload, KINDS[a.kind], names_a, names_b) if a.kind == b.kind else []
    for name in dict.fromkeys([*a.metrics, *b.metrics]):
        one, other = a.metrics.get(name), b.metrics.get(name)
        if one != other:
            change = "" if one is None or other is None else f" ({other - one:+.4g})"
            lines.append(f"{name} {_number(one)} → {_number(other)}{change}")
    for name in ("code", "packages", "host"):
        one, other = a.provenance.get(name), b.provenance.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            changed = [key for key in {**one, **other} if one.get(key) != other.get(key) and key != "diff"]
            lines += [f"{name}.{key} {one.get(key)} → {other.get(key)}" for key in changed]
    for line in lines or ["no difference"]:
        click.echo(f"  {line}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
