"""Makes external data known before a plan can have fingerprints: indexing, as a named Ray task that shows its
progress.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.data.source import prepare
from orchestrator.store.artifacts import Store

POLL_S = 0.3

Say = Callable[[str], None]


class Indexer:
    """The actor: `run` goes on in one thread while `progress` is answered in another."""

    def __init__(self) -> None:
        self._progress = (0, 0)

    def run(self, store: str, source: str) -> str:
        """Index the source; its content digest."""

        def on_shard(done: int, total: int) -> None:
            self._progress = (done, total)

        return prepare(source, Store.open(store), on_shard=on_shard)

    def progress(self) -> tuple[int, int]:
        """Shards done, shards in all."""
        return self._progress


def index_on_ray(store: str, source: str, say: Say) -> str:
    """Index a source in a Ray worker; its content digest. Raises what `prepare` raises; what is done is kept."""
    import ray

    actor: Any = ray.remote(Indexer).options(num_cpus=1, max_concurrency=2).remote()
    future = actor.run.options(name=f"index {source}").remote(store, source)
    said = (0, 0)
    try:
        while not ray.wait([future], timeout=POLL_S)[0]:
            asked = actor.progress.options(name="progress").remote()
            if ray.wait([asked], timeout=POLL_S)[0] and (now := ray.get(asked)) != said:
                said = now
                say(f"indexing {source}: {now[0]} of {now[1]} shards")
        return ray.get(future)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None
    finally:
        ray.kill(actor)


def index_here(store: str, source: str, say: Say) -> str:
    """The same in this process."""
    return prepare(
        source, Store.open(store), on_shard=lambda done, total: say(f"indexing {source}: {done} of {total} shards")
    )
