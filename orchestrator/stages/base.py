"""The contract between a stage and the engine: `StageConfig` says what is wanted, `run(ctx)` does it.

A stage kind is a `StageConfig` subclass that names its runner by string. The engine imports the runner where the
stage runs and calls it with a `StageContext`: resolved inputs, an output directory of its own, a place for
checkpoints, an event sink and a stop request. The runner writes its files into `ctx.out`, returns an `Outcome`, and
publishes nothing: the engine, which holds the lease, does (store/artifacts.py). A runner may be called again after
a crash and must then go on from its last checkpoint, if it keeps any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from orchestrator.plan.types import Node, Resources
from orchestrator.recipe.schema import Artifact, Config, Execution
from orchestrator.store.artifacts import Handle, Store
from orchestrator.store.checkpoints import CheckpointStore


class ResourceConfig(Config):
    """What a stage may use. None of it changes what is computed, only how fast."""

    cpus: float = 1
    """CPU cores, shared by the stage's workers; threads per worker follow from it."""
    gpus: float = 0
    """GPUs, shared by the stage's workers."""
    memory_gb: float | None = None
    """Memory to reserve, in GB."""
    workers: int = 1
    """Processes: a training's ranks, which share `batch`, or those that go over a data set's blocks."""

    def resolve(self) -> Resources:
        """As the plan's type."""
        memory = None if self.memory_gb is None else int(self.memory_gb * 1e9)
        return Resources(cpus=self.cpus, gpus=self.gpus, memory_bytes=memory, workers=self.workers)

    def spread(self) -> Resources:
        """For work in blocks: a worker for each GPU, or else for each CPU, unless `workers` says how many."""
        budget = self.resolve()
        if "workers" in self.model_fields_set:
            return budget
        return replace(budget, workers=max(1, int(budget.gpus or budget.cpus)))


class StageConfig(Config):
    """Base of every stage kind's configuration. Class attributes are the kind's contract; fields are the recipe's."""

    outputs: ClassVar[Mapping[str, type[Artifact]]] = {}
    """Named outputs, the default one first."""
    runner: ClassVar[str] = ""
    """ "module:function" with signature `run(ctx: StageContext) -> Outcome`."""
    sources: ClassVar[tuple[str, ...]] = ()
    """Packages whose code decides the result (provenance: a digest of them is kept in the manifest)."""

    resources: Execution[ResourceConfig] = ResourceConfig()
    """CPU cores, GPUs, memory and workers."""
    retries: Execution[int] = 2
    """How often a crashed stage is started again (preemptions are counted apart)."""
    time_limit_minutes: Execution[float | None] = None
    """Checkpoint and stop after this long; submitting again goes on."""

    def budget(self) -> Resources:
        """The resources it reserves."""
        return self.resources.resolve()

    def capabilities(self) -> frozenset[str]:
        """What a Model that this stage makes can do ("encode_image", ...); checked against what references need."""
        return frozenset()

    def asks_of(self, path: tuple[str | int, ...], can: frozenset[str]) -> frozenset[str]:
        """What the model at a reference of this stage must be able to do, beside what the field's type names.

        Asked when the recipe is compiled, with what the model `can` do, so that a default may be what it can.
        """
        return frozenset()

    def smoke(self) -> StageConfig:
        """The same stage cut down to two steps on CPU-sized parts (`orch submit --smoke`)."""
        return self

    def external_sources(self) -> list[str]:
        """Data outside the store that must be identified by content before the stage has a fingerprint."""
        return []

    def copies(self, shared: bool, store_on_disk: bool) -> bool:
        """Whether its external sources must be in the store before it runs, for workers that cannot read them.

        Args:
            shared: they are in an object store, where every machine sees them.
            store_on_disk: the store is a folder.
        """
        return False

    def disagreements(self, node: Node, nodes: Mapping[str, Node]) -> Iterable[tuple[tuple[str | int, ...], str]]:
        """What does not fit between this stage and those it reads: (field, what is wrong and what to do) of each.

        Asked when the recipe is compiled: `node` is this stage, `nodes` has all those before it by name.
        """
        return ()

    def work(self) -> float | None:
        """Amount of work in the unit of `unit`, for time estimates; None if unknown before it runs."""
        return None

    unit: ClassVar[str] = "samples"
    """Unit of `work` and of progress events."""


class EventSink(Protocol):
    """Takes a stage's events. Cheap to call; never raises into the stage; delivery is the engine's business."""

    def emit(self, type: str, **fields: Any) -> None:
        """`type` is one of store/events.py's; `fields` are JSON values."""

    def flush(self) -> bool:
        """Write now what is waiting: done before a checkpoint is kept, as nothing below one is computed again."""


@dataclass(frozen=True)
class StageContext:
    """Everything a runner gets.

    Attributes:
        run_id, stage, kind, fingerprint: who is running.
        config: the stage's configuration.
        inputs: by the reference's path in the configuration (`teacher`, `models.0`), the finished artifact.
        input_names: same keys, the name to show for each (stage name or external reference).
        store: the artifact store.
        out: an empty local directory; every file in it becomes part of the artifact.
        scratch: a local directory that may be thrown away at any time.
        checkpoints: this stage's place for checkpoints, with those of earlier generations visible.
        resources: the budget, already reserved on Ray.
        events: the sink for reports, progress and messages.
        should_stop: None, or the reason to checkpoint and stop ("cancelled", "time limit", "lease lost", "preempted").
        sources: outside data as written -> its place in the store (data/source.py).
    """

    run_id: str
    stage: str
    kind: str
    fingerprint: str
    config: StageConfig
    inputs: Mapping[str, Handle]
    input_names: Mapping[str, str]
    store: Store
    out: Path
    scratch: Path
    checkpoints: CheckpointStore
    resources: Resources
    events: EventSink
    should_stop: Callable[[], str | None]
    sources: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a runner returns.

    Attributes:
        metrics: final numbers for the manifest and MLflow (flat names, finite floats).
        summary: JSON values for the manifest that are not results: timings, counts, choices made by `auto` rules.
        undeclared: names of files in `out` that may differ between two right runs (left out of the content digest).
        stopped: set when `should_stop` was obeyed before the work was complete; nothing is published then.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    undeclared: tuple[str, ...] = ()
    stopped: str | None = None
