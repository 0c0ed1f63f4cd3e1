"""Child processes of whatever script or session calls us.

multiprocessing has every child import the script that was started, under another name, so that its functions can be
unpickled: a script that calls us on its top level, without `if __name__ == "__main__"`, would do everything again
in each child. Ours need nothing of it: while a child starts, the script is out of sight.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnContext, SpawnProcess
from types import ModuleType
from typing import Any

_LOCK = threading.Lock()


@contextmanager
def _script_out_of_sight() -> Iterator[None]:
    """While inside, the main module is an empty one."""
    with _LOCK:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


class _Spawned(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with _script_out_of_sight():
            return SpawnProcess._Popen(process_obj)  # type: ignore[attr-defined]


class _Forked(ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with _script_out_of_sight():
            return ForkServerProcess._Popen(process_obj)  # type: ignore[attr-defined]


class Spawn(SpawnContext):
    """Fresh interpreters."""

    Process = _Spawned  # type: ignore[assignment]


class ForkServer(ForkServerContext):
    """Forked from a server that has only imported."""

    Process = _Forked  # type: ignore[assignment]


def end_with_parent() -> None:
    """In a child: end when the parent does, however it ends. (It may wait for tasks forever: it holds the other end of
    the queue itself.)
    """

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
