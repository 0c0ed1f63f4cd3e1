"""`orch init`: a recipe to begin with."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--data", "source", help="Shards: a folder, path/{00000..00012}.tar, s3://bucket/folder; or `emoji`.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("recipe.yaml"), show_default=True)
def init(source: str | None, out: Path) -> None:
    """Look at the data and write a starter recipe that runs on them."""
    from orchestrator.data.starter import look, recipe
    from orchestrator.engine.doctor import gpu_count
    from orchestrator.errors import UserError
    from orchestrator.recipe.json_schema import write
    from orchestrator.stages import KINDS

    if out.exists():
        raise UserError(f"{out} is there already", "give another name with --out")
    facts = look(source or "emoji")
    kinds = ", ".join(f"{count} {kind}" for kind, count in facts.formats.items())
    click.echo(f"first of {facts.shards} shards: {facts.samples} pairs ({kinds}), shorter side {facts.side} pixels")
    click.echo(f'captions of {facts.words} words, e.g. "{facts.example}"; concepts: {facts.concepts or "none given"}')
    for reason, count in facts.dropped.items():
        click.echo(f"left out: {count} × {reason}")
    out.write_text(recipe(facts, gpu_count()), encoding="utf-8")
    write(out.parent / "schema.json", KINDS)
    click.echo(f"wrote {out} (and schema.json, for completion in your editor)\nnext: orch plan {out}")
