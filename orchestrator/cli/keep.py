"""`orch keep`: name what garbage collection must leave alone."""

from __future__ import annotations

import json
import time

import click

from orchestrator.cli import options


@click.command()
@click.argument("what", required=False)
@click.option("--as", "name", metavar="NAME", help="Under this name. Default: a run's id, or STAGE-FINGERPRINT.")
@click.option("--list", "as_list", is_flag=True, help="What is kept.")
@click.option("--drop", metavar="NAME", help="Take a name back; nothing is deleted until `orch gc --delete`.")
@click.option("--json", "as_json", is_flag=True, help="With --list, for programs.")
@options.store
def keep(
    what: str | None, name: str | None, as_list: bool, drop: str | None, as_json: bool, store: str | None
) -> None:
    """Keep WHAT (a run or an artifact, named as in `orch show`) with all that it was made from.

    The name is then good wherever a run or an artifact may be named: `orch show NAME`, `load_model("NAME")`.
    """
    from orchestrator.store import keep as kept

    opened = options.open_store(store)
    if drop is not None:
        gone = kept.drop(opened.storage, drop)
        click.echo(f"'{gone.name}' is not kept any more; `orch gc` shows what that frees")
    elif as_list:
        found = kept.list_kept(opened.storage)
        if as_json:
            click.echo(json.dumps([each.__dict__ for each in found], indent=1))
            return
        for each in found:
            what = f"run {each.run}" if each.run else f"{each.kind} '{each.stage}' {str(each.fingerprint)[:12]}"
            when = time.strftime("%Y-%m-%d", time.localtime(each.at))
            click.echo(f"{each.name:<32} {when}  {what}")
        if not found:
            click.echo(f"nothing is kept in {opened.url}: `orch keep WHAT --as NAME`")
    elif what is not None:
        _keep(opened, what, name)
    else:
        raise click.UsageError("say what to keep, or --list, or --drop NAME")


def _keep(store, what: str, name: str | None) -> None:
    from orchestrator.errors import UserError
    from orchestrator.store import keep as kept
    from orchestrator.store.lookup import find
    from orchestrator.store.runs import Run

    found = find(store, what)
    if isinstance(found, Run):
        made = kept.keep_run(store.storage, found.id, name)
        click.echo(f"run {found.id} is kept as '{made.name}'")
        return
    made = kept.keep_artifact(store.storage, found.kind, found.fingerprint, found.stage, name)
    if store.afresh().find(found.kind, found.fingerprint) is None:  # collected between the look and the mark
        kept.drop(store.storage, made.name)
        raise UserError(f"'{what}' was collected just now", "submit its recipe again")
    click.echo(f"{found.kind} '{found.stage}' {found.fingerprint[:12]} is kept as '{made.name}'")
