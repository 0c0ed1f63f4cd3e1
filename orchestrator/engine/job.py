"""What passes between the engine and the process that works: `Job` there, `WorkerResult` back. Small, picklable, free
of torch and Ray.

A job names things (store, artifacts by fingerprint, classes by import string) and carries the configuration as JSON,
so it means the same in every process and can be read by a person. Publication is not in it: the worker uploads an
attempt's files, the engine, which holds the lease, makes them the artifact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.plan.types import Resources
from orchestrator.stages.base import Outcome
from orchestrator.store.artifacts import File


@dataclass(frozen=True)
class JobInput:
    """A finished artifact that a job reads, and the name to show for it."""

    kind: str
    fingerprint: str
    output: str
    name: str


@dataclass(frozen=True)
class Job:
    """One attempt at a stage.

    Attributes:
        run, stage, kind, fingerprint, generation, attempt: who is running; `attempt` names the directory of its files.
        config_class: "module:Class" of the configuration; `config` is its JSON.
        inputs: by the reference's path, artifacts of the store; `external` are the other references, as written.
        sources: outside data as written -> its place in the store (data/source.py).
        resources: the budget, already cut to what the cluster has.
        store: root of the store, absolute.
    """

    run: str
    stage: str
    kind: str
    fingerprint: str
    generation: int
    attempt: str
    config_class: str
    config: str
    inputs: Mapping[str, JobInput]
    external: Mapping[str, str]
    sources: Mapping[str, str | None]
    resources: Resources
    store: str


@dataclass(frozen=True)
class WorkerResult:
    """How an attempt ended, if its process lived to say so.

    Attributes:
        outcome: what the runner returned, or None where it raised.
        files: the uploaded attempt's files, empty unless the work is complete.
        error: what the runner raised; `traceback` where it is a bug rather than an error for people.
        facts: host, threads, device and package versions, for the manifest.
        started, wall_s: Unix seconds, seconds.
    """

    outcome: Outcome | None
    files: Mapping[str, File] = field(default_factory=dict)
    error: Exception | None = None
    traceback: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    started: float = 0.0
    wall_s: float = 0.0


@dataclass(frozen=True)
class Done:
    """What an executor reports of a job: its result, or that its process died (`died` says how)."""

    stage: str
    result: WorkerResult | None = None
    died: str | None = None
    preempted: bool = False
