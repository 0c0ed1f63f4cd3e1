"""How a process that works on a stage learns that it must make way: SIGTERM, or its Ray node being drained.

SIGTERM is what spot notices, schedulers and `kill` send. Ray answers it by ending the worker at once; `Notice` takes
its place while a stage is at work, so that `should_stop` says "preempted" and the stage keeps a checkpoint first. A
second SIGTERM, or one while nothing is at work, goes where it went before. A drained node (`ray drain-node`, or an
autoscaler that was warned) says nothing to its workers: somebody has to ask the cluster.

A handler can be set by a process's main thread alone: an actor's `__init__` runs there, a rank of Ray Train is reached
by a callback (train/run.py). Ray looks for signals a hundred times a second, also while that thread waits for tasks.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

PREEMPTED = "preempted"
"""What `should_stop` says (stages/base.py)."""

Handler = Callable[[int, FrameType | None], object]


class Notice:
    """SIGTERM to this process, as a stop request. Belongs into worker processes and commands, never into a library."""

    def __init__(self, before: Handler) -> None:
        self._before = before
        self._at_work = 0
        self._told = False

    @classmethod
    def installed(cls) -> Notice:
        """This process's, set in place of its SIGTERM handler if it has none yet (by the main thread only)."""
        before = signal.getsignal(signal.SIGTERM)
        if isinstance(before, Notice):
            return before
        assert threading.current_thread() is threading.main_thread()
        notice = cls(before if callable(before) else _default)
        signal.signal(signal.SIGTERM, notice)
        return notice

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self._at_work and not self._told:
            self._told = True
        else:
            self._before(number, frame)

    @contextmanager
    def heeded(self) -> Iterator[Callable[[], str | None]]:
        """While inside, SIGTERM ends nothing; the function given says "preempted" once it has come."""
        self._at_work += 1
        try:
            yield lambda: PREEMPTED if self._told else None
        finally:
            self._at_work -= 1


def _default(number: int, frame: FrameType | None) -> None:
    """What the signal does where nobody has set a handler."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def draining_nodes() -> frozenset[str]:
    """Ids of the Ray nodes that are told to give up their work. Empty where Ray cannot say."""
    import ray

    try:
        return frozenset(ray._private.state.state.get_draining_nodes())
    except Exception:
        logging.getLogger(__name__).debug("cannot tell which nodes are draining", exc_info=True)
        return frozenset()


def node_is_draining() -> bool:
    """Whether the Ray node that this process works on is one of them."""
    import ray

    return ray.get_runtime_context().get_node_id() in draining_nodes()
