"""Blocks of work that are quick to do and can go wrong, for processes of Ray to import."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import DataError, UserError
from orchestrator.stages.blocks import Work


@dataclass(frozen=True)
class Toy:
    """Opens what writes down each block it does.

    Attributes:
        folder: where it is written down: a file a block and process.
        dies_at: the block at which the process is killed, once.
        fails_at: the block that is bad.
        closed: it cannot be opened.
        takes_s: what a block takes.
    """

    folder: Path
    dies_at: int | None = None
    fails_at: int | None = None
    closed: bool = False
    takes_s: float = 0.0

    def __call__(self) -> Work:
        if self.closed:
            raise UserError("there are no weights here", "bring some")
        return self.work

    def work(self, block: int) -> bytes:
        with (self.folder / f"{block}-{os.getpid()}").open("a") as log:
            log.write("done\n")
        if block == self.dies_at and not (self.folder / "dead").exists():
            (self.folder / "dead").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if block == self.fails_at:
            raise DataError(f"block {block} is bad", "repair it")
        time.sleep(self.takes_s)
        return b"%d" % block

    def calls(self) -> list[int]:
        """Blocks as often as they were begun, in order."""
        logs = [path for path in self.folder.iterdir() if "-" in path.name]
        return sorted(int(path.name.partition("-")[0]) for path in logs for _ in path.read_text().splitlines())

    def processes(self) -> set[str]:
        """Who did something."""
        return {path.name.partition("-")[2] for path in self.folder.iterdir() if "-" in path.name}
