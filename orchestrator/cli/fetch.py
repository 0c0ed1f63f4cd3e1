"""`orch fetch`: an artifact's files, out of the store and into a folder."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli import options


@click.command()
@click.argument("what")
@click.option(
    "-o", "--out", required=True, type=click.Path(file_okay=False), help="Folder to write into; made if absent."
)
@click.option("--only", default="*", show_default=True, help="Files to fetch, as a pattern: 'webdataset/*'.")
@options.store
def fetch(what: str, out: str, only: str, store: str | None) -> None:
    """Copy the files of WHAT (a stage, RUN/STAGE, a fingerprint's beginning, a kept name) into a folder, each checked
    against its SHA-256.
    """
    import hashlib
    from fnmatch import fnmatch

    from orchestrator.errors import OrchError, UserError
    from orchestrator.store.lookup import find_artifact

    opened = options.open_store(store)
    manifest = find_artifact(opened, what)
    names = [name for name in manifest.files if fnmatch(name, only)]
    if not names:
        raise UserError(f"no file of '{what}' is like '{only}'", f"it has: {', '.join(list(manifest.files)[:8])}")
    for name in names:
        path = Path(out) / name
        opened.storage.download(f"{manifest.prefix}/{name}", path)
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != manifest.files[name].sha256:
                path.unlink()
                raise OrchError(f"{name} is not what was published", "`orch gc --verify` looks at the whole store")
    size = sum(manifest.files[name].size for name in names)
    click.echo(f"{len(names)} files, {size:,} bytes, in {out}")
