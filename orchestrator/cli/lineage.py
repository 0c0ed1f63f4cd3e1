"""Lineage as trees: what something was made from, and everything made of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import click

from orchestrator.cli import options
from orchestrator.store.artifacts import Cost, Manifest
from orchestrator.store.lineage import Lineage, Use, changed_packages, facts, total_cost
from orchestrator.store.runs import Run


def artifact_trees(lineage: Lineage, manifest: Manifest, runs: list[Run], kinds: Mapping[str, Any]) -> None:
    """Print both trees of one artifact, and the runs that asked for it."""
    branches = _Branches(lineage, kinds, manifest)
    _backward(branches, lineage, manifest, kinds)
    click.echo(f"in all: {cost(total_cost(lineage.ancestors([manifest.fingerprint]).values()))}")
    _forward(_Branches(lineage, kinds, manifest), manifest.fingerprint)
    if runs:
        click.echo(f"asked for by: {', '.join(run.id for run in runs[:10])}{' ...' if len(runs) > 10 else ''}")


def run_trees(lineage: Lineage, run: Run, made: Mapping[str, Manifest], kinds: Mapping[str, Any]) -> None:
    """Print what a run's results were made from, and what others made of them."""
    own = {manifest.fingerprint for manifest in made.values()}
    branches = _Branches(lineage, kinds, None)
    click.echo(run.id)
    for manifest in made.values():
        if not any(use.fingerprint in own for use in lineage.users(manifest.fingerprint)):
            _backward(branches, lineage, manifest, kinds)
    click.echo(f"in all: {cost(total_cost(lineage.ancestors(own).values()))}")
    for stage, manifest in made.items():
        forward = _Branches(lineage, kinds, None)
        mine = Use("", stage, manifest.kind, manifest.fingerprint)
        elsewhere = [use for use in forward.forward(mine) if use.fingerprint not in own]
        if elsewhere:
            click.echo(f"{stage} was also used by")
            for line in forward.grow(elsewhere, forward.forward):
                click.echo(line)


def external_trees(lineage: Lineage, found: Mapping[str, str], kinds: Mapping[str, Any]) -> None:
    """Print everything made of external data or weights."""
    for identity, name in found.items():
        click.echo(f"{name} (external, {_short(identity)})")
        _forward(_Branches(lineage, kinds, None), identity)


def _backward(branches: _Branches, lineage: Lineage, manifest: Manifest, kinds: Mapping[str, Any]) -> None:
    click.echo(_line(manifest, kinds))
    for line in branches.grow(lineage.inputs(manifest), branches.backward):
        click.echo(line)


class _Branches:
    """Grows trees as lines of text; what an artifact was made from, or what was made of it, is written once."""

    def __init__(self, lineage: Lineage, kinds: Mapping[str, Any], root: Manifest | None) -> None:
        self._lineage, self._kinds, self._root = lineage, kinds, root
        self._told: set[str] = set()

    def backward(self, use: Use) -> list[Use]:
        """What it was made from."""
        return [] if use.manifest is None else self._lineage.inputs(use.manifest)

    def forward(self, use: Use) -> list[Use]:
        """What was made of it, each once with all its roles."""
        roles: dict[str, list[str]] = {}
        users = self._lineage.users(use.fingerprint)
        for user in users:
            roles.setdefault(user.fingerprint, []).append(user.role)
        once = {user.fingerprint: user for user in users}
        return [replace(user, role=" and ".join(roles[fingerprint])) for fingerprint, user in once.items()]

    def grow(self, uses: list[Use], following: Callable[[Use], list[Use]]) -> Iterator[str]:
        """The lines below a title. With a stack of our own: chains may be long."""
        backward = following == self.backward
        waiting = [("", use, number == len(uses) - 1) for number, use in enumerate(uses)][::-1]
        while waiting:
            indent, use, is_last = waiting.pop()
            known = use.fingerprint in self._told
            self._told.add(use.fingerprint)
            yield f"{indent}{'└── ' if is_last else '├── '}{self._label(use, backward, known)}"
            more = [] if known else following(use)
            below = indent + ("    " if is_last else "│   ")
            waiting += [(below, each, number == len(more) - 1) for number, each in enumerate(more)][::-1]

    def _label(self, use: Use, backward: bool, known: bool) -> str:
        role, after = (f"{use.role} = ", "") if backward else ("", f" as {use.role}")
        if use.external:
            return f"{role}{use.name} (external, {_short(use.fingerprint)}){after}"
        what = f"{role}{use.name} ({use.kind} {use.fingerprint[:12]}"
        if use.manifest is None:
            return f"{what}, not in this store any more){after}"
        return f"{what}){after}" + (", see above" if known else f": {_facts(use.manifest, self._kinds, self._root)}")


def _forward(branches: _Branches, identity: str) -> None:
    uses = branches.forward(Use("", "", "", identity))
    click.echo("used by" if uses else "used by nothing yet")
    for line in branches.grow(uses, branches.forward):
        click.echo(line)


def _line(manifest: Manifest, kinds: Mapping[str, Any]) -> str:
    return f"{manifest.stage} ({manifest.kind} {manifest.fingerprint[:12]}): {_facts(manifest, kinds)}"


def _facts(manifest: Manifest, kinds: Mapping[str, Any], root: Manifest | None = None) -> str:
    """How it came to be, in one line; of its packages those that are not the root's."""
    known = facts(manifest, kinds.get(manifest.kind))
    parts = [
        time.strftime("%Y-%m-%d %H:%M", time.localtime(manifest.finished)),
        options.duration(manifest.wall_s),
        cost(manifest.cost),
        f"on {known['host']}" if known["host"] else "",
        ", ".join(f"{name} {value}" for name, value in known["seeds"].items()),
        f"code {known['commit'][:10]}" if known["commit"] else "",
        "with uncommitted changes" if known["uncommitted_changes"] else "",
        f"run {manifest.run}",
    ]
    if root is not None:
        parts += [f"{name} {version}" for name, version in changed_packages(manifest, root).items()]
    return ", ".join(part for part in parts if part)


def cost(value: Cost) -> str:
    """Hours, as `0.25 CPU h, 3 GPU h`."""
    gpus = f", {value.gpu_hours:.3g} GPU h" if value.gpu_hours else ""
    return f"{value.cpu_hours:.3g} CPU h{gpus}"


def _short(identity: str) -> str:
    return identity[:12] if len(identity) == 64 else identity
