"""Which process that was, and whether it still lives: host, boot, pid and start time.

Pids are given again, so a pid alone says nothing. Where a record comes from another machine, or from another process
namespace of this one (a container), its pid cannot be looked up here: then nothing is known.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Process:
    """One process of one machine, as it stands in records."""

    host: str
    boot: str
    """The machine's boot and the process namespace: equal means that process ids can be compared."""
    pid: int
    pid_started: str

    def alive(self) -> bool | None:
        """Whether it runs; None where that cannot be known here."""
        if (self.host, self.boot) != (socket.gethostname(), boot()):
            return None
        return pid_started(self.pid) == self.pid_started

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def this_process() -> Process:
    """The one that calls."""
    return Process(socket.gethostname(), boot(), os.getpid(), pid_started(os.getpid()) or "")


def recorded(values: Mapping[str, Any]) -> Process | None:
    """The process among other values of a record; None if there is none."""
    names = Process.__dataclass_fields__
    return Process(**{name: values[name] for name in names}) if all(name in values for name in names) else None


@cache
def boot() -> str:
    """Identity of the machine's boot and of the process namespace."""
    if sys.platform != "linux":
        import psutil

        return str(int(psutil.boot_time()))
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"


def pid_started(pid: int) -> str | None:
    """When a process began, in the kernel's own count (a pid may be given again); None if it is dead or a zombie."""
    if sys.platform != "linux":
        import psutil

        try:
            return str(psutil.Process(pid).create_time())
        except psutil.Error:
            return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, started = fields[0], fields[19]
    return None if state in "ZX" else started
