"""Makes outside data known, and brings into the store what workers could not read, before a plan's stages run.

Both are a step of data/source.py (`prepare`, `copy_in`) over a source's shards, which both must see: what is on this
machine's disk is done by this process itself, what every machine sees by a named Ray task near the workers.
Either way progress is told shard by shard, and what an interrupted step did is used by the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.errors import OrchError
from orchestrator.io.environment import Environment
from orchestrator.io.redact import redact_error
from orchestrator.store.artifacts import Store

POLL_S = 0.3
AGAIN = "submit again: what is done is kept"

Say = Callable[[str], None]
Step = Callable[..., str]
"""`step(source, store, on_shard=...)`: `prepare` or `copy_in`."""


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
            return step(source, Store.open(store), on_shard=on_shard)
        except Exception as error:
            raise redact_error(error) from None  # Ray writes down and shows what a task raises

    def progress(self) -> tuple[int, int]:
        """Shards done, shards in all."""
        return self._progress


def on_ray(
    step: Step, doing: str, store: str, source: str, say: Say, environment: Environment, lives: Callable[[], bool]
) -> str:
    """Do a step in a Ray worker, as the task "<doing> <source>". Raises what the step raises; what is done is kept.

    Args:
        lives: whether the cluster is still there (a dead one does not answer).
    """
    import ray

    actor: Any = ray.remote(StepWorker).options(num_cpus=1, max_concurrency=2).remote(environment)
    future = actor.run.options(name=f"{doing} {source}").remote(step, store, source)
    said = (0, 0)
    try:
        while not ray.wait([future], timeout=POLL_S)[0]:
            if not lives():
                raise OrchError(f"the Ray cluster ended while {doing} {source}", AGAIN)
            asked = actor.progress.options(name="progress").remote()
            if ray.wait([asked], timeout=POLL_S)[0] and (now := ray.get(asked)) != said:
                said = now
                say(f"{doing} {source}: {now[0]} of {now[1]} shards")
        return ray.get(future)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None
    except ray.exceptions.RayActorError as error:
        raise OrchError(f"{doing} {source}: its worker died: {str(error).splitlines()[0]}", AGAIN) from None
    finally:
        ray.kill(actor)


def here(step: Step, doing: str, store: str, source: str, say: Say) -> str:
    """The same in this process."""
    return step(
        source, Store.open(store), on_shard=lambda done, total: say(f"{doing} {source}: {done} of {total} shards")
    )
