"""What a person sees of a run while it goes on: one live line a stage on a terminal, plain lines elsewhere.

Both are observers (observe.py). The plain one prints a line for every change of state and about every tenth of a
stage's work.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.engine.observe import Observer, StageStatus
from orchestrator.engine.progress import Progress, duration
from orchestrator.io.redact import redact
from orchestrator.plan.types import Node, Plan

STYLES = {
    "waiting": "dim",
    "elsewhere": "cyan",
    "running": "bold",
    "cached": "green",
    "done": "green",
    "failed": "red",
    "stopped": "yellow",
    "skipped": "dim",
}
NUM_MESSAGES = 4
"""Latest messages shown under the table."""


def ending(status: StageStatus) -> str:
    """What to say of a stage beside its state: reason, and time taken."""
    took = f"in {duration(status.wall_s)}" if status.state == "done" and status.wall_s is not None else ""
    return "  ".join(part for part in (took, status.reason) if part)


class PlainView(Observer):
    """Lines for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._since = time.time()
        self._progress: dict[str, Progress] = {}
        self._said: dict[str, int] = {}

    def say(self, text: str) -> None:
        """A line about the run as a whole."""
        line = f"{time.strftime('%H:%M:%S')} {redact(text)}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def stage_state(self, node: Node, status: StageStatus) -> None:
        self.say(f"{node.name}: {status.state}  {ending(status)}".rstrip())
        if status.state in ("failed", "stopped") and status.remedy:
            self.say(f"{node.name}: {status.remedy}")

    def stage_event(self, node: Node, event: Mapping[str, Any]) -> None:
        progress = self._progress.setdefault(node.name, Progress())
        progress.take(event)
        if event["t"] < self._since and event["type"] != "resumed":
            return  # of an earlier submission, which told it
        if event["type"] == "message":
            self.say(f"{node.name}: {event['text']}")
        elif event["type"] == "resumed":
            self.say(f"{node.name}: resumed at {event.get('samples', 0):,} samples")
        elif event["type"] == "phase":
            self.say(f"{node.name}: {event['name']}")
        elif event["type"] == "progress" and progress.share is not None:
            tenth = int(progress.share * 10)
            if tenth > self._said.get(node.name, 0):
                self._said[node.name] = tenth
                self.say(f"{node.name}: {progress.share:.0%}  {progress.numbers()}".rstrip())

    def close(self) -> None:
        """Nothing is open."""


class LiveView(Observer):
    """One line a stage, redrawn in place a few times a second.

    `say` shows a line above the table until the run starts.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._status: dict[str, StageStatus] = {}
        self._progress: dict[str, Progress] = {}
        self._messages: list[str] = []
        self._said = ""
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4, transient=False)
        self._live.start()

    def say(self, text: str) -> None:
        """A line about the run as a whole."""
        self._said = redact(text)

    def run_started(self, plan: Plan, run: str, provenance: Mapping[str, Any]) -> None:
        self._status = {n.name: StageStatus(n.name, n.kind, n.fingerprint) for n in plan.nodes.values()}
        self._said = f"run {run}"

    def stage_state(self, node: Node, status: StageStatus) -> None:
        self._status[node.name] = status
        if status.state == "failed":
            self._message(f"{node.name}: {status.reason}" + (f"; {status.remedy}" if status.remedy else ""))
        elif status.state == "waiting" and status.reason:
            self._message(f"{node.name}: {status.reason}")

    def stage_event(self, node: Node, event: Mapping[str, Any]) -> None:
        self._progress.setdefault(node.name, Progress()).take(event)
        if event["type"] == "message":
            self._message(f"{node.name}: {event['text']}")
        elif event["type"] == "resumed":
            self._message(f"{node.name}: resumed at {event.get('samples', 0):,} samples")

    def close(self) -> None:
        """Leave the last picture standing."""
        self._live.stop()

    def _message(self, text: str) -> None:
        self._messages = [*self._messages, redact(text)][-NUM_MESSAGES:]

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for status in self._status.values():
            table.add_row(*self._row(status))
        below = [Text(line, style="dim", overflow="ellipsis", no_wrap=True) for line in self._messages]
        return Group(Text(self._said, style="dim"), table, *below)

    def _row(self, status: StageStatus) -> tuple[RenderableType, ...]:
        progress = self._progress.get(status.name, Progress())
        style = STYLES[status.state]
        bar: RenderableType = Text("")
        detail = ending(status)
        if status.state in ("running", "elsewhere"):
            share = progress.share
            bar = ProgressBar(total=1.0, completed=share or 0.0, width=24, pulse=share is None)
            detail = "  ".join(part for part in (progress.phase, progress.numbers(), detail) if part)
        words = Text(redact(detail), overflow="ellipsis", no_wrap=True)
        return Text(status.name, style=style), Text(status.state, style=style), bar, words


def view(quiet: bool = False) -> PlainView | LiveView:
    """The view for this process's output: live on a terminal, plain elsewhere, nothing but errors when quiet."""
    console = Console(stderr=True, quiet=quiet)
    return LiveView(console) if console.is_terminal and not quiet else PlainView(console)
