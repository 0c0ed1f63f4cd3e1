"""The spool: what MLflow is to be told, as JSON lines, one folder a submission.

    <ORCH_HOME>/spool/<run>/header.json    tracking URI, experiment name, where artifacts go
    <ORCH_HOME>/spool/<run>/ops.jsonl      operations, appended by the submitter alone
    <ORCH_HOME>/spool/<run>/cursor.json    what has been delivered; rewritten by the deliverer alone
    <ORCH_HOME>/spool/<run>/closed         the submitter wrote its last operation

A line without its newline is not there yet. The folder is removed when everything in a closed spool has been
delivered.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from orchestrator.io.home import home


def tracking_uri(store_url: str) -> str:
    """MLFLOW_TRACKING_URI if set, else a SQLite file beside a local store, else one under `home()`."""
    chosen = os.environ.get("MLFLOW_TRACKING_URI")
    if chosen:
        return chosen
    folder = home() if "://" in store_url else Path(store_url).expanduser().resolve()
    return f"sqlite:///{folder / 'mlflow.db'}"


def artifact_root(store_url: str) -> str:
    """Where MLflow's own artifacts go when we choose the database: beside the store's."""
    if "://" in store_url:
        return f"{store_url.rstrip('/')}/mlartifacts"
    return str(Path(store_url).expanduser().resolve() / "mlartifacts")


@dataclass(frozen=True)
class Header:
    """Where the operations of a spool are to go."""

    run: str
    tracking_uri: str
    experiment: str
    artifact_root: str | None
    pid: int
    """The submitter's process, on this machine."""

    def alive(self) -> bool:
        """Whether the submitter may still add operations."""
        return psutil.pid_exists(self.pid)


def header(folder: Path) -> Header:
    """The header of a spool."""
    return Header(**json.loads((folder / "header.json").read_text()))


class Spool:
    """The writing end. Appending is a line to a local file; errors are kept in `failed`, never raised."""

    def __init__(self, header: Header) -> None:
        self.folder = home() / "spool" / header.run
        self.header = header
        self.failed: OSError | None = None
        self._lock = threading.Lock()
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "header.json").write_text(json.dumps(header.__dict__, indent=1))
        self._file = (self.folder / "ops.jsonl").open("a", encoding="utf-8")

    def append(self, op: str, **fields: Any) -> None:
        """Add one operation (its kinds: deliver.py)."""
        line = json.dumps({"op": op, **fields}, separators=(",", ":"), default=str)
        with self._lock:
            try:
                self._file.write(line + "\n")
                self._file.flush()
            except (OSError, ValueError) as error:
                self.failed = error if isinstance(error, OSError) else None

    def close(self) -> None:
        """No more operations will come."""
        with self._lock:
            self._file.close()
        (self.folder / "closed").touch()


def pending() -> list[Path]:
    """Spools that still hold something to deliver, oldest first."""
    root = home() / "spool"
    if not root.is_dir():
        return []
    return sorted(folder for folder in root.iterdir() if (folder / "header.json").exists())


def read(folder: Path, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Complete operations from a byte offset on, each with the offset after it."""
    try:
        file = (folder / "ops.jsonl").open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield json.loads(line), offset


def start_delivery() -> subprocess.Popen[bytes]:
    """Start the delivering process for all pending spools; it ends by itself when there is nothing left to do."""
    log = (home() / "deliver.log").open("ab")
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.tracking.deliver"],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"},
    )


def wait_delivered(run: str, timeout_s: float) -> bool:
    """Wait until a closed spool has been delivered in full; False if it takes longer than `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    folder = home() / "spool" / run
    while folder.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
