"""Where a result came from, as far as it is not identity: code, packages, machine, command line.

Kept in each manifest. Nothing here enters a fingerprint, and nothing here may hold a secret: values of environment
variables that look like one, passwords in addresses and arguments are replaced by `***`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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

_SECRET = r"(?:secret|token|password|passwd|credentials?|api[_-]?key|access[_-]?key)"
_SECRET_NAME = re.compile(_SECRET, re.IGNORECASE)
_USERINFO = re.compile(r"(://)[^/\s@]+@")
# In code most things called token are none: only a long value with a digit in it is taken for a secret.
_LITERAL = re.compile(_SECRET + r"""['"]?\s*[=:]\s*['"]?(?=[\w+/-]*\d)([\w+/-]{16,})""", re.IGNORECASE)
_OPTION = re.compile(rf"(--[\w-]*{_SECRET}=|[\w.]*{_SECRET}=).+", re.IGNORECASE)
_KEY_ID = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")


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


def redact_arguments(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> list[str]:
    """A command line as `redact` has it, and `***` for the argument after an option that is named like a secret."""
    result: list[str] = []
    follows = False
    for argument in argv:
        result.append("***" if follows else _OPTION.sub(r"\1***", redact(argument, environment)))
        follows = argument.startswith("--") and "=" not in argument and bool(_SECRET_NAME.search(argument))
    return result


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text with `***` for secrets: values of variables named so, user:password@, long literals, AWS key ids."""
    for name, value in (os.environ if environment is None else environment).items():
        if _SECRET_NAME.search(name) and len(value) >= 6:
            text = text.replace(value, "***")
    text = _LITERAL.sub(lambda match: match[0].replace(match[1], "***"), text)
    return _KEY_ID.sub("***", _USERINFO.sub(r"\1***@", text))


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
