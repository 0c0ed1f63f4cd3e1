"""What went wrong: each stage that failed or stopped, why, what to do, and the end of its log."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from orchestrator.report import words
from orchestrator.report.blocks import Block, Code, Text
from orchestrator.report.record import RunRecord

ENDED_BADLY = ("failed", "stopped", "interrupted")


def show(run: RunRecord) -> Iterator[Block]:
    """Failures first; what was skipped because of them in one line."""
    for word in ENDED_BADLY:
        for stage in run.stages.values():
            if stage.state != word:
                continue
            why = f": {stage.reason}" if stage.reason else ""
            remedy = f" What to do: {stage.remedy}." if stage.remedy else ""
            yield Text(f"{stage.name} {word}{why}.{remedy}".replace("..", "."), warning=word == "failed")
            log = stage.log_tail()
            if log:
                yield Code(log, title=f"The end of the log of {stage.name}")
    if run.again and run.state in ENDED_BADLY:
        yield Text("To go on, with everything that is finished kept:")
        yield Code(shlex.join(["orch", "submit", *run.again, "--store", run.store.url]))
    skipped = [stage.name for stage in run.stages.values() if stage.state == "skipped"]
    if skipped:
        yield Text(f"Not run because of that: {words.some(skipped, most=12)}.")
    lost = [s.name for s in run.stages.values() if s.state in ("done", "cached") and s.manifest is None]
    if lost:
        yield Text(f"No longer in the store, so not shown here: what {words.some(lost, most=12)} made.")
