"""Makes external data known before a plan can have fingerprints: indexing as a named Ray task that shows how far it
is.
"""

from __future__ import annotations

import time
from collections.abc import Callable

POLL_S = 0.3


class Indexer:
    """The actor. `run` goes on in one thread while the others are answered."""

    def __init__(self) -> None:
        self._progress = (0, 0)
        self._stop = False

    def run(self, store_url: str, source: str) -> str:
        """Index the source; its content digest."""
        from orchestrator.data.source import prepare
        from orchestrator.store.artifacts import Store

        def on_shard(done: int, total: int) -> None:
            self._progress = (done, total)

        return prepare(source, Store.open(store_url), cancel=lambda: self._stop, on_shard=on_shard)

    def progress(self) -> tuple[int, int]:
        """Shards done, shards in all."""
        return self._progress

    def stop(self) -> None:
        """Stop after the shard at hand; what is done is kept."""
        self._stop = True


def index_on_ray(store_url: str, source: str, say: Callable[[str], None], cancelled: Callable[[], bool]) -> str:
    """Index a source in a Ray worker.

    Its content digest. What `prepare` raises is raised; Cancelled when asked to stop.
    """
    import ray

    actor = ray.remote(Indexer).options(num_cpus=1, max_concurrency=3).remote()
    future = actor.run.options(name=f"index {source}").remote(store_url, source)
    said, asked = (0, 0), False
    try:
        while not ray.wait([future], timeout=POLL_S)[0]:
            if cancelled() and not asked:
                asked = True
                actor.stop.remote()
            ready, _ = ray.wait([asking := actor.progress.remote()], timeout=POLL_S)
            if ready and (now := ray.get(asking)) != said:
                said = now
                say(f"indexing {source}: {now[0]} of {now[1]} shards")
        return ray.get(future)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from None
    finally:
        ray.kill(actor)


def index_here(store_url: str, source: str, say: Callable[[str], None], cancelled: Callable[[], bool]) -> str:
    """The same in this process."""
    from orchestrator.data.source import prepare
    from orchestrator.store.artifacts import Store

    started = time.monotonic()
    digest = prepare(source, Store.open(store_url), cancel=cancelled)
    say(f"indexed {source} in {time.monotonic() - started:.1f} s")
    return digest
