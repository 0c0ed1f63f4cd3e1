"""A stage's log: text in numbered segments, in the same way as events.

    <root>/work/<fingerprint>/<generation>/logs/<n>

`LogWriter` can stand in for `sys.stdout` and `sys.stderr` of a worker, so that what libraries print is kept with the
stage, on whatever node it ran.
"""

from __future__ import annotations

import io
import threading

from orchestrator.io.storage import Storage
from orchestrator.store.segments import SegmentReader, SegmentWriter


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
                self._segments.write((whole + newline).encode(errors="replace"))
        return len(text)

    def flush(self) -> None:
        """Nothing: segments are closed by time, or a program that flushes after each line would make one of each."""

    def close(self) -> None:
        """Write what is waiting and stop."""
        if not self.closed:
            with self._lock:
                if self._line:
                    self._segments.write(self._line.encode(errors="replace") + b"\n")
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
        return b"".join(self._segments.poll()).decode(errors="replace")
