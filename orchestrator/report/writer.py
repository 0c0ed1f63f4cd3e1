"""Writes a run's page when the run ends: an observer of the engine, so that nothing it meets can hurt the run.

A run that did nothing new gets none and imports nothing for it; `orch report` makes one at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.store.runs import Run

if TYPE_CHECKING:
    from orchestrator.plan.types import Node, Plan
    from orchestrator.store.artifacts import Store


class PageWriter:
    """Puts the page beside the run's record.

    Args:
        attach: takes the file's name and its text (MLflow's artifact), before the run's tracking ends.
        say: is told the page's address.
    """

    def __init__(self, store: Store, attach: Callable[[str, str], None], say: Callable[[str], None]) -> None:
        self._store, self._attach, self._say = store, attach, say
        self._run: Run | None = None
        self._worked = False

    def run_started(self, plan: Plan, run: str, provenance: Mapping[str, Any]) -> None:
        """Which run it is."""
        self._run = Run(self._store, run)

    def stage_started(self, node: Node) -> None:
        """There is something to show."""
        self._worked = True

    def stage_failed(self, node: Node, reason: str, stopped: bool) -> None:
        """Also where a stage failed before it began."""
        self._worked = True

    def run_finished(self, ok: bool, stopped: bool) -> None:
        """Make the page and hand it on."""
        if self._run is None or not self._worked:
            return
        from orchestrator.report.page import NAME, page, place

        html = page(self._run)
        storage, key = self._store.storage, place(self._run)
        storage.put(key, html.encode())
        self._attach(NAME, html)
        self._say(f"report: {storage.where(key)}")
