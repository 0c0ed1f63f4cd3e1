"""MLflow's page for a SQLite back end: one server, on loopback, started when somebody wants to look."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import psutil

from orchestrator.errors import OrchError
from orchestrator.io.home import home, private_file, private_folder
from orchestrator.tracking.spool import noted, pending, start_delivery, tracking_uri

START_S = 90.0
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""Jobs of GenAI evaluation, unused here, would be seven more processes and 1.5 GB."""


def serve(store_url: str) -> str:
    """The address of MLflow's page for a store, starting its server if it is not up; OrchError if that fails.

    Operations that are still spooled are delivered meanwhile.
    """
    if pending():
        start_delivery()
    uri = tracking_uri(store_url)
    if not uri.startswith("sqlite:"):
        return _without_password(uri)
    record = home() / "mlflow.json"
    known = noted(record)
    if known.get("uri") == uri and _is_ours(known):
        return known["url"]
    stop()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = private_folder(home()) / "mlflow.log"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    with private_file(log) as output:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--workers", "1"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, **QUIET},
        )
    url = f"http://127.0.0.1:{port}"
    created = psutil.Process(process.pid).create_time()
    record.write_text(json.dumps({"uri": uri, "url": url, "pid": process.pid, "created": created}))
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return url
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise OrchError("MLflow's server did not start", f"its log is {log}")


def stop() -> bool:
    """Stop the server this machine has up; whether there was one."""
    record = home() / "mlflow.json"
    known = noted(record)
    up = _is_ours(known)
    if up:
        server = psutil.Process(known["pid"])
        family = [*server.children(recursive=True), server]
        for process in family:
            process.terminate()
        psutil.wait_procs(family, timeout=5)
    record.unlink(missing_ok=True)
    return up


def _without_password(uri: str) -> str:
    """An address to show and to open: a browser's command line can be read by everybody."""
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}" if separator else uri


def _is_ours(known: dict) -> bool:
    """Whether the recorded process still runs (the same one: pids are used again)."""
    try:
        return abs(psutil.Process(known["pid"]).create_time() - known["created"]) < 1
    except (KeyError, psutil.NoSuchProcess):
        return False
