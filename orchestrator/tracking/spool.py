"""The spool: what MLflow is to be told, as JSON lines, one folder a submission.

    <ORCH_HOME>/spool/<run>/header.json    tracking URI, experiment name, where artifacts go
    <ORCH_HOME>/spool/<run>/ops.jsonl      operations, appended by the submitter alone
    <ORCH_HOME>/spool/<run>/cursor.json    what has been delivered; rewritten by the deliverer alone
    <ORCH_HOME>/spool/<run>/trouble.json   why and since when nothing can be delivered; gone when it can again
    <ORCH_HOME>/spool/<run>/closed         the submitter wrote its last operation

A line without its newline is not there yet. The folder is removed when everything in a closed spool has been
delivered. What the submitter cannot write (the disk is full) it keeps in memory and writes later; both are bounded,
and nothing here ever raises into a run or lets it wait.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.io.home import home, private_file, private_folder
from orchestrator.io.redact import redact
from orchestrator.store.process import Process

MAX_WAITING_BYTES = 32 << 20
"""Kept in memory while the spool's disk takes nothing."""
MAX_SPOOL_BYTES = 1 << 30
"""Of one run; points of curves beyond it are dropped, everything else is still taken."""
SILENT_S = 3600.0
"""A spool of another machine (a home directory that several share) is taken for left after such a silence."""


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
    """Where the operations of a spool are to go. On disk the address has no password."""

    run: str
    tracking_uri: str
    experiment: str
    artifact_root: str | None
    submitter: dict[str, Any]
    """The submitting process (store/process.py)."""


def header(folder: Path) -> Header:
    """The header of a spool."""
    return Header(**json.loads((folder / "header.json").read_text()))


def is_left(folder: Path) -> bool:
    """Whether the submitter has ended without closing its spool, so that nothing more will come."""
    alive = Process(**header(folder).submitter).alive()
    if alive is None:
        ops = folder / "ops.jsonl"
        return time.time() - (ops if ops.exists() else folder).stat().st_mtime > SILENT_S
    return not alive


def address(header: Header) -> str:
    """The tracking URI to call: with its password, which only MLFLOW_TRACKING_URI has."""
    mine = os.environ.get("MLFLOW_TRACKING_URI", "")
    return mine if mine and redact(mine) == header.tracking_uri else header.tracking_uri


class Spool:
    """The writing end. An operation is a line added to a local file. No method raises or waits."""

    def __init__(self, header: Header) -> None:
        self.folder = home() / "spool" / header.run
        self.header = header
        self.dropped = 0
        self._lock = threading.Lock()
        self._file: int | None = None
        self._written = 0
        self._waiting = b""
        self._flush()

    def append(self, op: str, **fields: Any) -> None:
        """Add one operation (its kinds: operations.py)."""
        line = redact(json.dumps({"op": op, **fields}, separators=(",", ":"), default=str)).encode() + b"\n"
        with self._lock:
            full = op == "points" and self._written > MAX_SPOOL_BYTES
            if full or len(self._waiting) + len(line) > MAX_WAITING_BYTES:
                self.dropped += 1
                return
            self._waiting += line
            self._flush()

    def close(self) -> None:
        """No more operations will come."""
        with self._lock:
            self._flush()
            if self._file is None or self._waiting:
                return  # what could be written is delivered once this process has ended
            os.close(self._file)
            self._file = None
            with suppress(OSError):
                (self.folder / "closed").touch()

    def _flush(self) -> None:
        """Write what waits, as far as the disk takes it; the rest begins where it stopped."""
        with suppress(OSError):
            if self._file is None:
                self._open()
            while self._file is not None and self._waiting:
                count = os.write(self._file, self._waiting)
                self._waiting = self._waiting[count:]
                self._written += count

    def _open(self) -> None:
        private_folder(home())
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.folder / "header.json", redact(json.dumps(self.header.__dict__, indent=1)))
        self._file = os.open(self.folder / "ops.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def replace_file(path: Path, text: str) -> None:
    """Write a small file so that a reader sees all of it or the one before."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def pending() -> list[Path]:
    """Spools that still hold something to deliver, oldest first."""
    root = home() / "spool"
    if not root.is_dir():
        return []
    return sorted(f for f in root.iterdir() if not f.name.startswith(".") and (f / "header.json").exists())


def read(folder: Path, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Complete operations from a byte offset on, each with the offset after it; `op` is "unreadable" for a line that
    is none.
    """
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
            try:
                op = json.loads(line)
            except ValueError:
                op = {"op": "unreadable"}
            yield op, offset


@dataclass(frozen=True)
class Waiting:
    """Operations of a run that MLflow has not been told: how many, since when (Unix seconds), what is in the way."""

    run: str
    tracking_uri: str
    operations: int
    since: float
    error: str
    delivering: bool

    def text(self) -> str:
        """A line for people."""
        clock = time.strftime("%m-%d %H:%M", time.localtime(self.since))
        said = f"{self.operations} operations of run {self.run} wait since {clock}"
        if self.error:
            said += f": {self.tracking_uri} does not take them ({self.error})"
        later = "`orch ui` or the next `orch submit` delivers them"
        return f"{said}; {'tried again in the background' if self.delivering else later}"


def waiting() -> list[Waiting]:
    """What is still to be delivered from this machine."""
    found = []
    for folder in pending():
        with suppress(OSError, ValueError, TypeError):  # delivered meanwhile, or not written to its end
            about, cursor, trouble = header(folder), noted(folder / "cursor.json"), noted(folder / "trouble.json")
            count = sum(1 for _ in read(folder, cursor.get("offset", 0)))
            since = trouble.get("since") or (folder / "ops.jsonl").stat().st_mtime
            if count:
                error = trouble.get("error", "")
                found.append(Waiting(about.run, about.tracking_uri, count, since, error, is_delivering()))
    return found


def is_delivering() -> bool:
    """Whether a delivering process is at work on this machine."""
    try:
        with (home() / "deliver.lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def start_delivery() -> subprocess.Popen[bytes] | None:
    """Start the delivering process for all pending spools; it ends by itself when there is nothing left to do. None if
    that fails: the next submission delivers.
    """
    with suppress(OSError), private_file(private_folder(home()) / "deliver.log") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.tracking.deliver"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"},
        )
    return None


def wait_delivered(run: str, timeout_s: float) -> bool:
    """Wait until a closed spool has been delivered in full; False if it takes longer than `timeout_s`, or at once
    where the server is known to be away.
    """
    deadline = time.monotonic() + timeout_s
    folder = home() / "spool" / run
    while folder.exists():
        if time.monotonic() > deadline or (folder / "trouble.json").exists():
            return False
        time.sleep(0.1)
    return True


def noted(path: Path) -> dict[str, Any]:
    """What a small file of ours holds; {} if it is not there, or a power cut has torn it."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
