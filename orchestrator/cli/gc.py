"""`orch gc`: what nobody needs any more, and how much that is; --delete it, or --verify what is there."""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from orchestrator.cli import options

if TYPE_CHECKING:
    from orchestrator.store.artifacts import Store
    from orchestrator.store.collect import Collected
    from orchestrator.store.garbage import Survey

LISTED = 20
"""Things of a category that are named; --json has all."""


@click.command()
@click.option("--older-than", "days", type=click.FloatRange(min=0), default=14, show_default=True, metavar="DAYS")
@click.option("--delete", is_flag=True, help="Delete it. Without this nothing is written.")
@click.option("--no-mlflow", is_flag=True, help="Leave models that are registered with MLflow out of account.")
@click.option("--verify", is_flag=True, help="Instead: hash every file anew; exit code 1 if any is not as published.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@options.store
def gc(days: float, delete: bool, no_mlflow: bool, verify: bool, as_json: bool, store: str | None) -> None:
    """Show what would go, and what stays and why; delete it with --delete.

    What is kept (`orch keep`), models registered with MLflow, runs at work and everything younger than DAYS stay, with
    all that they were made from. Else these go: artifacts; attempts that lost; checkpoints of finished stages; events,
    logs and checkpoints of stages that no remaining run asks for; indexes and copies of sources that no remaining data
    set needs; records of runs of which nothing remains; what killed processes left behind.

    Of an unfinished stage the highest complete checkpoint, from which submitting again goes on, stays as long as the
    run's record does: keep the run if you mean to come back later than in DAYS.
    """
    opened = options.open_store(store)
    if verify:
        sys.exit(_verify(opened, as_json))
    from orchestrator.errors import OrchError
    from orchestrator.store.collect import collect, store_time
    from orchestrator.store.garbage import DAY_S, survey

    registered: dict[str, str] = {}
    unasked: OrchError | None = None
    if not no_mlflow:
        from orchestrator.tracking.registered import registered as ask

        try:
            registered = ask(opened.url)
        except OrchError as error:
            if delete:
                raise
            unasked = error
    found = survey(opened, days * DAY_S, registered, now=store_time(opened.storage) if delete else None)
    done = collect(opened, found) if delete else None
    if as_json:
        click.echo(json.dumps(_json(found, done), indent=1))
        return
    if unasked is not None:
        click.echo(f"{unasked}\n", err=True)
    for damage in found.lineage.damaged.values():
        click.echo(f"cannot be read, nothing can be deleted before: {damage}\n", err=True)
    _show(found, done)


def _show(found: Survey, done: Collected | None) -> None:
    stays = found.stays()
    if stays:
        click.echo("stays")
    for root, (number, size) in stays.items():
        click.echo(f"  {root}: {number:,} artifacts, {_bytes(size)}")
    totals = found.by_category() if done is None else done.deleted
    total = sum(size for _, size in totals.values())
    click.echo(("would go" if done is None else "deleted") + f": {_bytes(total)}")
    for category, (number, size) in totals.items():
        if number:
            click.echo(f"  {category}: {number:,}, {_bytes(size)}")
        things = [each for each in found.garbage if each.category == category] if done is None else []
        for each in sorted(things, key=lambda g: -g.size)[:LISTED]:
            click.echo(f"    {each.what}, {_bytes(each.size)}, {_age(each.modified)}")
        if len(things) > LISTED:
            click.echo(f"    and {len(things) - LISTED:,} more")
    if done is None:
        click.echo("nothing was deleted: `orch gc --delete` does it" if total else "there is nothing to delete")
        return
    for what, why in done.left:
        click.echo(f"left: {what}: {why}")


def _json(found: Survey, done: Collected | None) -> dict:
    return {
        "stays": [
            {"fingerprint": f, "stage": m.stage, "kind": m.kind, "because": found.because[f], "bytes": m.size}
            for f in found.because
            if (m := found.lineage.artifacts.get(f)) is not None
        ],
        "garbage": [
            {"category": g.category, "what": g.what, "bytes": g.size, "modified": g.modified, "keys": list(g.keys)}
            for g in found.garbage
        ],
        "damaged": {fingerprint: error.message for fingerprint, error in found.lineage.damaged.items()},
        "by_category": {name: {"things": n, "bytes": size} for name, (n, size) in found.by_category().items()},
        "deleted": None
        if done is None
        else {name: {"things": n, "bytes": size} for name, (n, size) in done.deleted.items()},
        "left": [] if done is None else [{"what": what, "why": why} for what, why in done.left],
    }


def _verify(store: Store, as_json: bool) -> int:
    from orchestrator.store.verify import verify

    lock, read, began = threading.Lock(), 0, time.monotonic()

    def count(num_bytes: int) -> None:
        nonlocal read
        with lock:
            read += num_bytes

    checked = verify(store, count)
    seconds = time.monotonic() - began
    if as_json:
        click.echo(json.dumps({**asdict(checked), "seconds": seconds}, indent=1))
        return 1 if checked.problems else 0
    for each in checked.problems:
        of = f" (stage {each.stage}" + (f" of run {each.run})" if each.run else ")") if each.stage else ""
        click.echo(f"{each.key}{of}: {each.how}\n  {each.remedy}")
    speed = f"{read / 1e6 / max(seconds, 1e-9):,.0f} MB/s"
    words = f"{len(checked.problems)} problems" if checked.problems else "all as published"
    click.echo(f"{checked.files:,} files, {_bytes(read)}, {speed}: {words}")
    return 1 if checked.problems else 0


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def _age(modified: float) -> str:
    days = max(0.0, time.time() - modified) / 86400
    return f"{days:.0f} days old" if days >= 2 else f"{days * 24:.0f} h old"
