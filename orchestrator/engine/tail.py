"""The one reader of stages' events: hands what workers wrote to the store to whoever watches the run.

A stage is followed from its first event, also those of earlier generations, which a killed submission may not have
passed on; watchers know points of a curve by their sample count.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

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

    def take(self, event: Event) -> None:
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

    def poll(self, name: str | None = None) -> list[tuple[str, Event]]:
        """What came since the last call, of all stages that are due, or of one at once."""
        now, found = time.monotonic(), []
        for each, followed in self._followed.items():
            if each == name or (name is None and now >= followed.next_look):
                followed.next_look = now + self._every_s
                for event in followed.reader.poll():
                    followed.take(event)
                    found.append((each, event))
        return found

    def earlier_s(self, name: str) -> float:
        """Seconds of work of earlier generations that the present one went on from."""
        return self._followed[name].earlier_s
