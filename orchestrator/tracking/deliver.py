"""The delivering process: `python -m orchestrator.tracking.deliver` carries spooled operations to MLflow, once each.

It and what it calls (operations.py) are the only place that imports MLflow for writing. While a server is away its
spools are tried again with growing pauses, the others go on; what is not delivered in this process's time is
delivered by the next one.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.io.home import home, private_folder
from orchestrator.io.redact import redact, redact_own_output
from orchestrator.tracking import spool
from orchestrator.tracking.operations import Delivery

IDLE_S = 0.3
"""Pause between looks at an open spool."""
MAX_PAUSE_S = 60.0
"""Between two tries to reach a server."""
PATIENCE_S = 3600.0
"""How long an unreachable server is tried again after the last submitter has ended."""
REQUESTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "15", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""Unless they are set: a server that takes connections and never answers must not hold up other servers' spools."""


@dataclass
class _Turn:
    """A spool among others: each has its own pauses, so that a server that is away keeps nobody else waiting."""

    delivery: Delivery | None = None
    failures: int = 0
    next_try: float = 0.0


def deliver(patience_s: float = PATIENCE_S) -> bool:
    """Deliver all spools until every submitter has ended, or the servers stay away; True if nothing is left."""
    turns: dict[Path, _Turn] = {}
    last_success = time.monotonic()
    while folders := spool.pending():
        moved = False
        for folder in folders:
            turn = turns.setdefault(folder, _Turn())
            if time.monotonic() < turn.next_try:
                continue
            try:
                turn.delivery = turn.delivery or Delivery(folder)
                moved = turn.delivery.step(everything=False) or moved
                if turn.delivery.finished():
                    _remove(folder)
                    del turns[folder]
                    moved = True
                elif turn.failures:
                    (folder / "trouble.json").unlink(missing_ok=True)
                turn.failures, last_success = 0, time.monotonic()
            except Exception as error:  # the servers' clients raise many types; all mean "not now"
                _note(folder, error)
                turn.delivery, turn.failures = None, turn.failures + 1
                turn.next_try = time.monotonic() + min(2.0**turn.failures, MAX_PAUSE_S)
        failing = bool(turns) and all(turn.failures for turn in turns.values())
        if failing and time.monotonic() - last_success > patience_s and all(_is_over(folder) for folder in folders):
            return False
        if not moved:
            time.sleep(IDLE_S)
    return True


def _note(folder: Path, error: Exception) -> None:
    """Keep what is in the way beside the spool, for `orch status`, and in our log."""
    text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    print(f"{time.strftime('%H:%M:%S')} {folder.name}: not delivered yet: {text}", flush=True)
    with suppress(OSError, ValueError):
        path = folder / "trouble.json"
        since = json.loads(path.read_text())["since"] if path.exists() else time.time()
        spool.replace_file(path, redact(json.dumps({"since": since, "error": text[:300]})))


def _is_over(folder: Path) -> bool:
    """Whether nothing more will come into a spool."""
    try:
        return (folder / "closed").exists() or spool.is_left(folder)
    except (OSError, ValueError, TypeError):
        return True


def _remove(folder: Path) -> None:
    """Remove a delivered spool; half a removal must not look like a spool."""
    hidden = folder.with_name(f".{folder.name}")
    folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def main() -> int:
    """One delivering process a machine at a time; one more waits for its turn, so that no spool is overlooked."""
    redact_own_output()
    folder = private_folder(home())
    with (folder / "deliver.next").open("w") as waiting, (folder / "deliver.lock").open("w") as lock:
        try:
            fcntl.flock(waiting, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        fcntl.flock(lock, fcntl.LOCK_EX)
        fcntl.flock(waiting, fcntl.LOCK_UN)
        os.nice(10)  # the machine is the training's
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
        for name, value in {**quiet, **REQUESTS}.items():
            os.environ.setdefault(name, value)
        return 0 if deliver() else 1


if __name__ == "__main__":
    sys.exit(main())
