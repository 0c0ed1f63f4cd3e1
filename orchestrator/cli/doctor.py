"""`orch doctor`: one line a check, with the remedy where one fails."""

from __future__ import annotations

import sys

import click


@click.command()
def doctor() -> None:
    """Check what a run needs on this machine: memory, disk, shared memory, ports, packages, GPU, store, MLflow."""
    from orchestrator.engine.doctor import examine

    worst = 0
    for check in examine():
        mark = {"ok": "ok  ", "warning": "note", "error": "FAIL"}[check.level]
        click.echo(f"{mark}  {check.name}: {check.finding}")
        if check.remedy:
            click.echo(f"      {check.remedy}")
        worst = max(worst, check.level == "error")
    sys.exit(worst)
