"""A stage's log: text in numbered segments, in the same way as events.

    <root>/work/<fingerprint>/<generation>/logs/<n>

`LogWriter` can stand in for `sys.stdout` and `sys.stderr` of a worker, so that what libraries print is kept with the
stage, on whatever node it ran.
"""

from __future__ import annotations

import io
import threading

from orchestrator.io.redact import redact
from orchestrator.io.storage import Storage
from orchestrator.store.segments import SegmentReader, SegmentWriter, compact, near_end


class LogWriter(io.TextIOBase):
    """A text file to write a stage's log to; cuts segments between lines, never raises. Thread-safe."""

    def __init__(self, storage: Storage, fingerprint: str, generation: int, interval_s: float = 1.0) -> None:
        self._segments = SegmentWriter(storage, fingerprint, generation, "logs", "", interval_s)
        self._lock = threading.Lock()
        self._line = ""

    def writable(self) -> bool:
        """True."""
        return True

    def write(self, text: str) -> int:
        """Take some text; the last line waits until it is ended, or until `close`."""
        with self._lock:
            whole, newline, self._line = (self._line + text).rpartition("\n")
            if newline:
                self._segments.write(redact(whole + newline).encode(errors="replace"))
        return len(text)

    def flush(self) -> None:
        """Nothing: segments are closed by time, or a program that flushes after each line would make one of each."""

    def close(self) -> None:
        """Write what is waiting and stop."""
        if not self.closed:
            with self._lock:
                if self._line:
                    self._segments.write(redact(self._line).encode(errors="replace") + b"\n")
                    self._line = ""
            self._segments.close()
        super().close()


class LogReader:
    """Reads a stage's log from where it stopped the last time, over all generations in order."""

    def __init__(self, storage: Storage, fingerprint: str, position: tuple[int, int] = (0, 0)) -> None:
        self._segments = SegmentReader(storage, fingerprint, "logs", "", position)

    @property
    def position(self) -> tuple[int, int]:
        """(generation, next segment): where the next `poll` begins."""
        return self._segments.position

    def poll(self) -> str:
        """The text that came since the last call; "" if none."""
        return "".join(text for _, text in self.parts())

    def parts(self) -> list[tuple[int, str]]:
        """The same by generation, that is by attempt: [(generation, text)]."""
        found: list[tuple[int, list[bytes]]] = []
        for segment in self._segments.poll():
            if not found or found[-1][0] != segment.generation:
                found.append((segment.generation, []))
            found[-1][1].append(segment.data)
        return [(generation, b"".join(data).decode(errors="replace")) for generation, data in found]


def last_lines(storage: Storage, fingerprint: str, count: int) -> list[str]:
    """The last lines of a stage's log, of its last attempt, without reading the rest."""
    position = near_end(storage, fingerprint, "logs", back=5)
    return LogReader(storage, fingerprint, position).poll().splitlines()[-count:]


def compact_logs(storage: Storage, fingerprint: str) -> int:
    """Pack the log of a stage that is final (`segments.compact`); how many objects that were deleted."""
    return compact(storage, fingerprint, "logs")
