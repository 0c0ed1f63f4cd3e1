"""Where this machine keeps what belongs to no store: the local cluster's record and token, MLflow's spool; and where
what is passing may lie. Nobody else may look into what is made here.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO

from orchestrator.errors import OrchError


def home() -> Path:
    """`ORCH_HOME`, by default `~/.orch`; absolute. It may not exist yet."""
    return Path(os.environ.get("ORCH_HOME") or "~/.orch").expanduser().absolute()


def temporary() -> Path:
    """This user's own folder among the machine's temporary files, made if absent."""
    return private_folder(Path(tempfile.gettempdir()) / f"orch-{os.getuid()}", owned=True)


def private_folder(folder: Path, owned: bool = False) -> Path:
    """The folder, made for this user alone where it does not exist.

    Args:
        owned: the name can be guessed and others may write beside it: OrchError unless it is ours and closed to them.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    if owned and (not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077):
        raise OrchError(
            f"{folder} is not a folder of yours alone", "remove it, or set TMPDIR to a folder that only you can write"
        )
    return folder


def private_file(path: Path) -> BinaryIO:
    """A file to add to, made for this user alone where it does not exist."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
