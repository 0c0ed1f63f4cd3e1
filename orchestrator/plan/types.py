"""What a compiled recipe is: a DAG of `Node`s whose fingerprints say what is already there.

`compile` (plan/compile.py) makes a `Plan` from a `Recipe`; the engine runs it. A node's fingerprint is the SHA-256
of its payload (plan/fingerprint.py): kind, identity fields that differ from their defaults, versions, and the
fingerprints of its inputs. Stage names, paths, machines and resources are not in it. A node whose external data is
not known yet has no fingerprint, and a `pending` reason; neither has anything downstream of it. The engine makes the
data known (indexes it) and compiles again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.recipe.schema import Config


@dataclass(frozen=True)
class Resources:
    """A stage's one resource budget, from which threads, workers and concurrency derive.

    Attributes:
        cpus: CPU cores in all, shared by the workers.
        gpus: GPUs in all.
        memory_bytes: memory to reserve, or None.
        workers: processes that compute together (ranks of a training stage).
    """

    cpus: float = 1
    gpus: float = 0
    memory_bytes: int | None = None
    workers: int = 1

    @property
    def threads(self) -> int:
        """Compute threads of one worker: its share of the CPUs, at least 1."""
        return max(1, int(self.cpus // self.workers))


@dataclass(frozen=True)
class Input:
    """One edge into a node.

    Attributes:
        path: where in the configuration the reference stands, for instance ("teacher",) or ("models", 0).
        artifact: name of the artifact type ("Model", ...).
        stage: the stage it comes from; None for an external artifact.
        output: name of that stage's output.
        external: the reference as written, when external.
        kind: kind of the producing stage ("external" for external ones).
        fingerprint: of the producing stage, or the content identity of the external artifact; None while unknown.
    """

    path: tuple[str | int, ...]
    artifact: str
    stage: str | None
    output: str
    external: str | None
    kind: str
    fingerprint: str | None

    @property
    def key(self) -> str:
        """The path as one string: `teacher`, `models.0`, `init.from`."""
        return ".".join(str(p) for p in self.path)


@dataclass(frozen=True)
class Node:
    """One stage, resolved. `payload` is what the fingerprint hashes; both are None while `pending` is set.

    `external` is the outside data it reads: the source as written -> its place in the store, None while unknown.
    """

    name: str
    kind: str
    config: Config
    inputs: tuple[Input, ...]
    resources: Resources
    payload: Mapping[str, Any] | None
    fingerprint: str | None
    pending: str | None = None
    external: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def upstream(self) -> tuple[str, ...]:
        """Names of the stages this one needs, each once, in order."""
        return tuple(dict.fromkeys(i.stage for i in self.inputs if i.stage is not None))


@dataclass(frozen=True)
class Plan:
    """A recipe's nodes by name, in an order in which every stage comes after those it needs."""

    name: str
    nodes: Mapping[str, Node]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """The resolved recipe as plain values: what `runs/<run>/recipe.yaml` and MLflow show."""
