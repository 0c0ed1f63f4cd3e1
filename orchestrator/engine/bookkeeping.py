"""What a submitter writes down and looks up beside its decisions: state, events, the cancel file, old checkpoints.

None of it may end a run or slow it for long. While it fails that is said once for each thing, and everything here
rests a little before it is tried again; decisions (what is finished, who holds a lease, publication) are not made
here, for they must be right or fail.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from orchestrator.errors import OrchError


class Bookkeeping:
    """Does things for the record. `say` hears when they begin to fail, and when they work again."""

    def __init__(self, say: Callable[[str], None], pause_s: float) -> None:
        self._say, self._pause_s = say, pause_s
        self._failing: set[str] = set()
        self._resume_at = 0.0

    def attempt(self, what: str, action: Callable[[], object], now: bool = False) -> bool:
        """Whether the action was done; not tried while all rests after a failure, unless it must be `now`."""
        if not now and time.monotonic() < self._resume_at:
            return False
        try:
            action()
        except OrchError as error:
            if what not in self._failing:
                self._say(f"{what} failed, the run goes on and tries again: {error.message}")
            self._failing.add(what)
            self._resume_at = time.monotonic() + self._pause_s
            return False
        if what in self._failing:
            self._failing.remove(what)
            self._say(f"{what} works again")
        return True
