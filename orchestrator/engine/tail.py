"""The one reader of stages' events: hands what workers wrote to the store to whoever watches the run.

A stage is followed from its first event, also those of earlier generations, which a killed submission may not have
passed on; watchers know points of a curve by their sample count.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from orchestrator.engine.progress import Progress
from orchestrator.store.artifacts import Store
from orchestrator.store.events import Event, EventReader

EVERY_S = 0.5
REMOTE_EVERY_S = 2.0
MAX_GAP_S = 60.0
"""A longer silence between two events is not counted as work (workers write one every few seconds)."""


@dataclass
class _Followed:
    reader: EventReader
    next_look: float = 0.0
    last_t: float | None = None
    active_s: float = 0.0
    earlier_s: float = 0.0
    progress: Progress = field(default_factory=Progress)
    left: bool = False

    def take(self, event: Event) -> None:
        self.progress.take(event)
        t = float(event["t"])
        if self.last_t is not None and 0 < t - self.last_t < MAX_GAP_S:
            self.active_s += t - self.last_t
        self.last_t = t
        if event["type"] == "resumed":
            self.earlier_s = self.active_s


class Tail:
    """Events of the followed stages, by name."""

    def __init__(self, store: Store) -> None:
        self._storage = store.storage
        self._every_s = EVERY_S if store.storage.local("work") is not None else REMOTE_EVERY_S
        self._followed: dict[str, _Followed] = {}

    def follow(self, name: str, fingerprint: str) -> None:
        """Begin to read a stage's events; going on where it stopped if it is followed already."""
        if name not in self._followed:
            self._followed[name] = _Followed(EventReader(self._storage, fingerprint))
        self._followed[name].left = False

    def leave(self, name: str) -> None:
        """Read no more of a stage's events: it is final."""
        if name in self._followed:
            self._followed[name].left = True

    def poll(self, name: str | None = None) -> Iterator[tuple[str, Event]]:
        """What came since the last call, of all stages that are due, or of one at once.

        OrchError where the store does not answer: what was handed out before is not read again, the rest comes later.
        """
        now = time.monotonic()
        for each, followed in self._followed.items():
            if each == name or (name is None and not followed.left and now >= followed.next_look):
                followed.next_look = 0.0  # at once again if this fails
                events = followed.reader.poll()
                followed.next_look = now + self._every_s
                for event in events:
                    followed.take(event)
                    yield each, event

    def earlier_s(self, name: str) -> float:
        """Seconds of work of earlier generations that the present one went on from."""
        return self._followed[name].earlier_s

    def record(self, name: str) -> dict[str, Any]:
        """What the run's state keeps of a stage: its progress, and how far its events have been read."""
        followed = self._followed.get(name)
        if followed is None:
            return {}
        return {"progress": followed.progress.record(), "position": followed.reader.position}
