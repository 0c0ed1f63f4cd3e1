"""Where this machine keeps what belongs to no store: the local cluster's record and token, MLflow's spool."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """`ORCH_HOME`, by default `~/.orch`; absolute. It may not exist yet."""
    return Path(os.environ.get("ORCH_HOME") or "~/.orch").expanduser().absolute()
