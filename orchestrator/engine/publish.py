"""From a finished attempt to its manifest: what was made, from what, by which code, where, and how long it took.

Both halves wait for a store that does not answer: the work is done, and must not be lost for a short absence.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.engine.job import Job, WorkerResult
from orchestrator.errors import StoreAway
from orchestrator.plan.source import source_digest
from orchestrator.plan.types import Node
from orchestrator.stages.base import Outcome
from orchestrator.store.artifacts import File, Manifest, Store, content_digest
from orchestrator.store.provenance import provenance

PATIENCE_S = 300.0
"""How long what is to be published waits for a store that does not answer, beyond the retries of `io`."""
PAUSE_S = 5.0


def upload(
    store: Store, job: Job, directory: Path, outcome: Outcome, should_stop: Callable[[], str | None]
) -> dict[str, File]:
    """Bring a complete attempt's files to the store; tried again while it does not answer, unless told to stop.

    StoreAway when the patience is at its end.
    """
    ends = time.monotonic() + PATIENCE_S
    while True:
        try:
            return store.upload(job.kind, job.fingerprint, job.attempt, directory, undeclared=outcome.undeclared)
        except StoreAway:
            if should_stop() is not None or time.monotonic() + PAUSE_S > ends:
                raise
            time.sleep(PAUSE_S)


def manifest_of(
    node: Node,
    job: Job,
    result: WorkerResult,
    upstream: Mapping[str, Manifest],
    earlier_wall_s: float,
) -> Manifest:
    """The manifest of an uploaded attempt.

    `earlier_wall_s`: seconds of earlier generations that this one went on from.
    """
    assert result.outcome is not None
    assert node.payload is not None
    inputs = {}
    for i in node.inputs:
        made = upstream[i.stage] if i.stage is not None else None
        inputs[i.key] = {
            "artifact": i.artifact,
            "kind": i.kind,
            "fingerprint": i.fingerprint,
            "output": i.output,
            "content_digest": made.content_digest if made is not None else None,
            "name": i.stage or i.external,
        }
    return Manifest(
        kind=job.kind,
        fingerprint=job.fingerprint,
        attempt=job.attempt,
        generation=job.generation,
        stage=job.stage,
        run=job.run,
        payload=node.payload,
        inputs=inputs,
        files=result.files,
        content_digest=content_digest(result.files),
        metrics=result.outcome.metrics,
        summary={**work(node.config), **result.outcome.summary},
        provenance={**code(), **result.facts, "sources": sources(node.config)},
        started=result.started,
        finished=time.time(),
        wall_s=result.wall_s + earlier_wall_s,
    )


@cache
def code() -> Mapping[str, Any]:
    """Commit and changes of the code that runs here, looked up once."""
    return provenance()


def work(config: Any) -> dict[str, float]:
    """The amount of work, by which a plan scales this run's time to estimate another's."""
    amount = config.work()
    return {} if amount is None else {"work": amount}


def sources(config: object) -> dict[str, str]:
    """Digests of the packages whose code decides a stage's result."""
    return {package: source_digest(package) for package in getattr(type(config), "sources", ())}
