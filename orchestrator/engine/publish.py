"""From a finished attempt to its manifest: what was made, from what, by which code, where, and how long it took."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.engine.job import Job, WorkerResult
from orchestrator.plan.types import Node
from orchestrator.store.artifacts import Manifest, content_digest

MAX_DIFF_BYTES = 200_000


def manifest_of(
    node: Node,
    job: Job,
    result: WorkerResult,
    upstream: Mapping[str, Manifest],
    earlier_wall_s: float,
) -> Manifest:
    """The manifest of an uploaded attempt. `earlier_wall_s`: seconds of earlier generations that this one went on from."""
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
        summary=result.outcome.summary,
        provenance={**code(), **result.facts, "sources": sources(tuple(getattr(type(node.config), "sources", ())))},
        started=result.started,
        finished=time.time(),
        wall_s=result.wall_s + earlier_wall_s,
    )


@cache
def code() -> Mapping[str, Any]:
    """Commit of this package's repository, whether it was changed since, and the changes. Empty outside a repository."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout

    try:
        commit = git("rev-parse", "HEAD").strip()
        diff = git("diff", "HEAD", "--", "orchestrator")
        untracked = git("ls-files", "--others", "--exclude-standard", "--", "orchestrator").split()
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit, "dirty": bool(diff or untracked), "diff": diff[:MAX_DIFF_BYTES], "untracked": untracked}
