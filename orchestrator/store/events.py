"""A stage's events: numbered segments of JSON lines, closed every second or so, never appended to.

    <root>/work/<fingerprint>/<generation>/events/<n>.jsonl

The worker writes, the engine's tailer is the only reader that feeds the live view, MLflow and Ray's metrics. An
event is a JSON object with `t` (Unix seconds), `type` and the fields of its type:

    progress  done, total, unit                              how far the stage is
    report    samples, metrics{name: float}                  a point of the curves, keyed by samples seen
    message   level ("info"|"warning"|"error"), text         a line for the log and the live view
    resumed   samples, generation                            work went on from this checkpoint; later points count
    phase     name                                           a training phase or step of the stage began
    system    metrics{name: float}                           what the process and its machine use, every few seconds

After a resume the points with `samples` above the resumed position are written again; readers keep, for each name
and sample count, the last value (they are equal where resume is exact). A worker calls `flush` before it saves a
checkpoint: points below a checkpoint are not computed again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from orchestrator.io.redact import redact
from orchestrator.io.storage import Storage
from orchestrator.store.segments import SegmentReader, SegmentWriter, compact

TYPES = ("progress", "report", "message", "resumed", "phase", "system")

Event = dict[str, Any]
"""`t`, `type` and the fields of the type."""


def to_line(type: str, fields: Mapping[str, Any]) -> bytes:
    """An event of one of `TYPES` that happens now, as a line of JSON."""
    assert type in TYPES, type
    line = json.dumps({"t": time.time(), "type": type, **fields}, default=_plain, skipkeys=True)
    return (redact(line) if type == "message" else line).encode() + b"\n"


class EventWriter:
    """The event sink of a running stage (`stages.base.EventSink`): thread-safe, in the background, never raises."""

    def __init__(self, storage: Storage, fingerprint: str, generation: int, interval_s: float = 1.0) -> None:
        self._segments = SegmentWriter(storage, fingerprint, generation, "events", ".jsonl", interval_s)

    def emit(self, type: str, **fields: Any) -> None:
        """Note an event of one of `TYPES`; `fields` are JSON values or numbers of NumPy and torch."""
        self._segments.write(to_line(type, fields))

    def flush(self) -> bool:
        """Write now what is waiting, on a local disk for good; False if the store did not take it (it is kept)."""
        return self._segments.flush()

    def close(self) -> None:
        """Write what is waiting and stop."""
        self._segments.close()

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class EventReader:
    """Reads a stage's events from where it stopped the last time, or from another reader's `position`."""

    def __init__(self, storage: Storage, fingerprint: str, position: tuple[int, int] = (0, 0)) -> None:
        self._segments = SegmentReader(storage, fingerprint, "events", ".jsonl", position)

    @property
    def position(self) -> tuple[int, int]:
        """(generation, next segment): where the next `poll` begins."""
        return self._segments.position

    def poll(self) -> list[Event]:
        """The events that came since the last call, in order, over all generations; [] if none."""
        return [event for _, event in self.numbered()]

    def numbered(self) -> list[tuple[int, Event]]:
        """The same, each with the generation, that is the attempt, that wrote it.

        A line that a broken disk has torn is left out: events must never end a run.
        """
        found = []
        for segment in self._segments.poll():
            for line in segment.data.splitlines():
                with suppress(ValueError):
                    found.append((segment.generation, json.loads(line)))
        return found


def compact_events(storage: Storage, fingerprint: str) -> int:
    """Pack the events of a stage that is final (`segments.compact`); how many objects that were deleted."""
    return compact(storage, fingerprint, "events", ".jsonl")


def curves(events: Iterable[Event]) -> dict[str, list[tuple[int, float]]]:
    """The curves that a stage's events draw: metric -> [(samples, value)] by rising samples.

    A `resumed` at S drops the points above S that came before it; of two values at one sample count the last is kept.
    """
    points: dict[str, dict[int, float]] = {}
    for event in events:
        if event["type"] == "report":
            for name, value in event["metrics"].items():
                points.setdefault(name, {})[event["samples"]] = value
        elif event["type"] == "resumed":
            points = {
                name: {samples: value for samples, value in curve.items() if samples <= event["samples"]}
                for name, curve in points.items()
            }
    return {name: sorted(curve.items()) for name, curve in points.items() if curve}


def _plain(value: Any) -> Any:
    """A number of NumPy or torch as Python's, anything else as text: an event must never stop a stage."""
    try:
        return value.item()
    except (AttributeError, ValueError, RuntimeError):
        return str(value)
