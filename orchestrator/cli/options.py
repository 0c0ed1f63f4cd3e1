"""Options that several commands share, each defined once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from orchestrator.store.artifacts import Store

store = click.option(
    "--store", help="Where artifacts are: a folder or s3://bucket/prefix. Default: ORCH_STORE, else ./orch-store."
)
overrides = click.option(
    "-s",
    "--set",
    "overrides",
    multiple=True,
    metavar="PATH=VALUE",
    help="Change the recipe: -s stages.small.steps=50.",
)
until = click.option("--until", metavar="STAGE", help="Stop after this stage: only it and what it needs.")
rerun = click.option("--rerun", multiple=True, metavar="STAGE", help="Compute this stage anew though it is there.")
smoke = click.option("--smoke", is_flag=True, help="Two steps a stage on CPU-sized models, before GPUs are booked.")


def store_url(given: str | None) -> str:
    """The store that a command speaks of."""
    from orchestrator.api import DEFAULT_STORE

    return given or os.environ.get("ORCH_STORE") or DEFAULT_STORE


def open_store(given: str | None) -> Store:
    """It, opened."""
    from orchestrator.store.artifacts import Store

    return Store.open(store_url(given))


def duration(seconds: float | None) -> str:
    """Seconds as `45s`, `3m20s`, `2h05m`; empty if unknown."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
