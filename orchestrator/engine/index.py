"""Makes outside data known, and brings into the store what workers could not read, before a plan's stages run.

Both are steps of data/source.py (`prepare`, `copy_in`) over a source's shards, which whoever does them must see. What
is on this machine's disk is this process's to do, and indexing spreads over the machine's cores. What every machine
sees is done near the workers: a named Ray actor has the lease and tells progress, and Ray tasks index the shards, on
every CPU of the cluster. Either way the next goes on from what an interrupted one did: all but the shards in flight.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from orchestrator.data.children import Spawn, end_with_parent
from orchestrator.data.source import Batch, copy_in, in_turn, index_batch, prepare
from orchestrator.errors import OrchError
from orchestrator.io.environment import Environment
from orchestrator.io.redact import redact_error
from orchestrator.store.artifacts import Store

POLL_S = 0.3
AGAIN = "submit again: what is done is kept"
SMALL_BYTES = 64 << 20
"""Shards of less in all are indexed before other processes would have started."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """Something done to a source: what people are told, and `(source, store, on_shard=...)` for the two places."""

    doing: str
    here: Callable[..., str]
    on_ray: Callable[..., str]


def over_cores(batches: Sequence[Batch], small: int = SMALL_BYTES) -> Generator[int, None, None]:
    """Index batches in a process a core; here, if there is little to do."""
    cores = min(len(batches), len(os.sched_getaffinity(0)))
    if cores < 2 or sum(shard.size for batch in batches for shard, _ in batch.shards) < small:
        yield from in_turn(batches)
        return
    waiting = iter(batches)
    pool = ProcessPoolExecutor(cores, Spawn(), _live_with_parent)
    try:
        running = {pool.submit(index_batch, batch) for batch in islice(waiting, 2 * cores)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(index_batch, batch) for batch in islice(waiting, len(done))}
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise OrchError("a process that indexed shards died (out of memory?)", AGAIN) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _live_with_parent() -> None:
    """Run in a process of the pool: it stops when its parent says so, or is no more; Ctrl-C is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def over_cluster(batches: Sequence[Batch]) -> Generator[int, None, None]:
    """Index batches in Ray tasks; called in a worker of the cluster. A task whose worker or node dies is run again."""
    import ray

    task = ray.remote(_index_elsewhere).options(name="index shards", num_cpus=1, scheduling_strategy="SPREAD")
    environment, waiting = Environment.passed_on(), iter(batches)
    running: list[Any] = []
    while True:
        at_once = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))  # asked again: the cluster may grow
        running += [task.remote(environment, batch) for batch in islice(waiting, max(0, at_once - len(running)))]
        if not running:
            return
        done, running = ray.wait(running)
        try:
            yield from ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        except ray.exceptions.RayError as error:
            raise OrchError(f"a worker that indexed shards died: {str(error).splitlines()[0]}", AGAIN) from None


def _index_elsewhere(environment: Environment, batch: Batch) -> int:
    environment.enter()
    try:
        return index_batch(batch)
    except Exception as error:
        raise redact_error(error) from None  # Ray writes down and shows what a task raises


INDEX = Step("indexing", partial(prepare, spread=over_cores), partial(prepare, spread=over_cluster))
COPY = Step("copying", copy_in, copy_in)


class StepWorker:
    """The actor: `run` goes on in one thread while `progress` is answered in another."""

    def __init__(self, environment: Environment) -> None:
        environment.enter()
        self._progress = (0, 0)

    def run(self, step: Step, store: str, source: str) -> str:
        """Do the step; what it returns."""

        def on_shard(done: int, total: int) -> None:
            self._progress = (done, total)

        try:
            return step.on_ray(source, Store.open(store), on_shard=on_shard)
        except Exception as error:
            raise redact_error(error) from None  # Ray writes down and shows what a task raises

    def progress(self) -> tuple[int, int]:
        """Shards done, shards in all."""
        return self._progress


def on_ray(step: Step, store: str, source: str, say: Say, environment: Environment, lives: Callable[[], bool]) -> str:
    """Do a step in a Ray worker, as the task "<doing> <source>". Raises what the step raises; what is done is kept.

    Args:
        lives: whether the cluster is still there (a dead one does not answer).
    """
    import ray

    # Of no CPU: it mostly waits, and the one CPU of a small cluster is for the shards.
    actor: Any = ray.remote(StepWorker).options(num_cpus=0, max_concurrency=2).remote(environment)
    future = actor.run.options(name=f"{step.doing} {source}").remote(step, store, source)
    said = (0, 0)
    try:
        while not ray.wait([future], timeout=POLL_S)[0]:
            if not lives():
                raise OrchError(f"the Ray cluster ended while {step.doing} {source}", AGAIN)
            asked = actor.progress.options(name="progress").remote()
            if ray.wait([asked], timeout=POLL_S)[0] and (now := ray.get(asked)) != said:
                said = now
                say(f"{step.doing} {source}: {now[0]} of {now[1]} shards")
        return ray.get(future)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None
    except ray.exceptions.RayActorError as error:
        raise OrchError(f"{step.doing} {source}: its worker died: {str(error).splitlines()[0]}", AGAIN) from None
    finally:
        ray.kill(actor)


def here(step: Step, store: str, source: str, say: Say) -> str:
    """The same by this process."""
    return step.here(
        source, Store.open(store), on_shard=lambda done, total: say(f"{step.doing} {source}: {done} of {total} shards")
    )
