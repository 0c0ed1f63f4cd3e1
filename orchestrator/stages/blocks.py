"""Work in blocks: each is done once, by whichever process is free, and kept as a part until the stage is finished.

A stage of one worker does its blocks in its own process. One of several hands them to an actor pool of Ray Data,
whose workers may be on any node: they read and write through the store, and what passes through Ray is the number of a
block. A worker that dies is replaced and its block done again by Ray Data; everything else (the controller, the whole
cluster) is the engine's business, and the parts that are there are not made again.
"""

from __future__ import annotations

import json
import logging
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator import errors
from orchestrator.errors import OrchError
from orchestrator.io.environment import Environment
from orchestrator.io.redact import redact_error
from orchestrator.plan.types import Resources
from orchestrator.store.parts import Parts

POLL_S = 0.5
"""How often a stop request is looked for while workers are at work."""
Work = Callable[[int], bytes]
"""From a block's number to what is kept of it. The same bytes for the same block, whoever does it."""
Open = Callable[[], Work]
"""Makes a process ready (models loaded, automata built) and gives what does its blocks. Picklable."""


@dataclass(frozen=True)
class Pass:
    """A pass over blocks.

    Attributes:
        name: of its parts.
        blocks: numbers of all its blocks.
        open: gives each process its worker.
    """

    name: str
    blocks: Sequence[int]
    open: Open


def do(
    one: Pass,
    parts: Parts,
    resources: Resources,
    should_stop: Callable[[], str | None] = lambda: None,
    on_block: Callable[[int, int], object] = lambda done, total: None,
) -> str | None:
    """Do every block of a pass that has no part yet; the reason to stop before the end, or None.

    `on_block(done, total)` is told of progress. Asked to stop, the blocks in flight are finished first. Raises what a
    block raises.
    """
    there = parts.done(one.name)
    missing = [block for block in one.blocks if block not in there]
    done = len(one.blocks) - len(missing)
    on_block(done, len(one.blocks))
    if not missing:
        return None
    alone = len(missing) == 1 and not resources.gpus  # which are the workers'
    finished = _spread if resources.workers > 1 and not alone else _here
    for _ in finished(one, missing, parts, resources, should_stop):
        done += 1
        on_block(done, len(one.blocks))
    return should_stop() if done < len(one.blocks) else None


def _here(
    one: Pass, missing: Sequence[int], parts: Parts, resources: Resources, should_stop: Callable[[], str | None]
) -> Iterator[int]:
    work = one.open()
    for block in missing:
        if should_stop() is not None:
            return
        parts.put(one.name, block, work(block))
        yield block


def _spread(
    one: Pass, missing: Sequence[int], parts: Parts, resources: Resources, should_stop: Callable[[], str | None]
) -> Iterator[int]:
    """The same by Ray Data's workers, in whatever order they finish."""
    found: queue.Queue[Any] = queue.Queue()
    over = threading.Event()
    reader = threading.Thread(target=_read, args=(one, missing, parts, resources, found, over), daemon=True)
    reader.start()
    try:
        while True:
            try:
                answer = found.get(timeout=POLL_S)
            except queue.Empty:
                if should_stop() is not None:
                    return
                continue
            if answer is None:
                return
            if isinstance(answer, BaseException):
                raise answer
            yield answer
            if should_stop() is not None:
                return
    finally:
        over.set()
        reader.join()


def _read(
    one: Pass,
    missing: Sequence[int],
    parts: Parts,
    resources: Resources,
    found: queue.Queue[Any],
    over: threading.Event,
) -> None:
    """Run the pass on Ray Data and pass on the numbers of finished blocks, then None; or what went wrong."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    workers = min(resources.workers, len(missing))
    arguments = (Environment.passed_on(), one.open, parts, one.name, resources.threads)
    try:
        rows = ray.data.from_items([{"block": block} for block in missing], override_num_blocks=len(missing))
        answers = rows.map_batches(
            _Worker,
            batch_size=1,
            fn_constructor_args=arguments,
            num_cpus=resources.cpus / resources.workers,
            num_gpus=resources.gpus / resources.workers,
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
        )
        for row in answers.iter_rows():
            found.put(_raised(row["error"]) if row["error"] else row["block"])
            if over.is_set():
                break
        found.put(None)
    except Exception as error:
        found.put(_explained(error))


def _explained(error: Exception) -> Exception:
    """What a worker's own error is, where Ray Data has wrapped it."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OrchError):
            return inner
        inner = inner.__cause__
    return error


def _told(error: Exception) -> str:
    """An error as text: of one meant for people the class and what it says, of any other what Python says of it."""
    if isinstance(error, OrchError):
        return json.dumps([type(error).__name__, error.message, error.remedy])
    return json.dumps(["", f"{type(error).__name__}: {error}", ""])


def _raised(told: str) -> Exception:
    """The error that `_told` told of."""
    name, message, remedy = json.loads(told)
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, OrchError):
        return kind(message, remedy)
    return RuntimeError(message)


class _Worker:
    """One process of Ray Data's actor pool."""

    def __init__(self, environment: Environment, open: Open, parts: Parts, name: str, threads: int) -> None:
        environment.enter()
        self._open, self._parts, self._name, self._threads = open, parts, name, threads
        self._work: Work | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Do one block. What it raises travels as a value, or Ray Data would do the block again; also what opening
        raises, which it would wrap so that nobody finds it.
        """
        block, error = int(batch["block"][0]), ""
        try:
            self._parts.put(self._name, block, self._opened()(block))
        except Exception as raised:
            error = _told(redact_error(raised))
        return {"block": [block], "error": [error]}

    def _opened(self) -> Work:
        if self._work is None:
            self._work = self._open()
            if (torch := sys.modules.get("torch")) is not None:
                torch.set_num_threads(self._threads)
        return self._work
