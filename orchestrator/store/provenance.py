"""Where a result came from, as far as it is not identity: code, packages, machine, command line.

Kept in each manifest. Nothing here enters a fingerprint, and nothing here may hold a secret (io/redact.py).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.io.redact import redact, redact_arguments

PACKAGES = (
    "orch",
    "boto3",
    "mlflow",
    "numpy",
    "obstore",
    "open_clip_torch",
    "optuna",
    "pillow",
    "pyarrow",
    "pydantic",
    "ray",
    "safetensors",
    "torch",
    "torchvision",
    "webdataset",
)

DIFF_BYTES = 256 << 10
"""An uncommitted difference is kept up to this length."""


def provenance(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Code, package versions, machine and command line of this process, as JSON values."""
    return {
        "code": code(Path(__file__).resolve().parents[1]),
        "packages": packages(),
        "host": host(),
        "argv": redact_arguments(sys.argv if argv is None else argv),
    }


def code(directory: Path) -> dict[str, Any]:
    """Commit, whether tracked files differ from it, and their difference (bounded); {} outside of a git checkout.

    Only tracked files are looked at: a file that nobody added may hold anything.
    """
    commit = _git(directory, "rev-parse", "HEAD")
    if commit is None or not _git(directory, "ls-files", "--", "."):
        return {}  # not a checkout, or installed into a folder that lies inside of some other one
    diff = _git(directory, "diff", "HEAD", "--no-color", "--no-ext-diff") or ""
    facts: dict[str, Any] = {"commit": commit.strip(), "dirty": bool(diff)}
    if diff:
        facts["diff_sha256"] = hashlib.sha256(diff.encode()).hexdigest()
        facts["diff"] = redact(diff)[:DIFF_BYTES]
        facts["diff_truncated"] = len(diff) > DIFF_BYTES
    return facts


def packages(names: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Installed versions by package name; those not installed are left out. Imports none of them."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def host() -> dict[str, Any]:
    """Name, CPU cores (of the machine, and those this process may use), platform and Python."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": socket.gethostname(),
        "cpus": os.cpu_count(),
        "usable_cpus": usable,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def _git(directory: Path, *arguments: str) -> str | None:
    """Output of a git command, None where it fails; takes no locks and asks nothing."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments], capture_output=True, timeout=10, env=environment, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")
