"""Runs a training stage through Ray Train: one worker in this very process, several as a worker group of their own.

One worker is Train's local mode: no processes, no placement, a second after the actor is warm. Several are a
TorchTrainer, whose workers open the store by its address, so they may be anywhere. Ray is given no checkpoints and
does no retries: both are the engine's, and a fresh run name for each attempt keeps Ray from resuming by itself. What
the workers make reaches this process through the store: the Model's files, and the stop request the other way round.
Without a Ray around, one worker is called directly.
"""

from __future__ import annotations

import logging
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from orchestrator.errors import OrchError, StoreAway
from orchestrator.io.environment import Environment
from orchestrator.io.redact import redact_error
from orchestrator.io.storage import Storage
from orchestrator.stages.base import Outcome, StageContext
from orchestrator.stages.preemption import PREEMPTED, Notice, node_is_draining
from orchestrator.stages.train.config import TrainStage
from orchestrator.stages.train.worker import TrainJob, TrainResult, train
from orchestrator.store.capture import captured_output
from orchestrator.store.events import EventWriter
from orchestrator.store.logs import LogWriter
from orchestrator.training.distributed import current_world
from orchestrator.training.types import World

STOP_POLL_S = 1.0
"""How often several workers look for a stop request in the store, and whether their nodes are being drained."""


def run(ctx: StageContext) -> Outcome:
    """Train to the end or until asked to stop, from the last checkpoint of any generation; the Model's files are in
    `ctx.out`.
    """
    assert isinstance(ctx.config, TrainStage)
    job = TrainJob(
        config=ctx.config,
        inputs=ctx.inputs,
        names=ctx.input_names,
        checkpoints=ctx.checkpoints,
        resume=ctx.checkpoints.latest(),
        threads=ctx.resources.threads,
    )
    started = time.monotonic()
    result = _several(ctx, job) if ctx.resources.workers > 1 else _alone(ctx, job)
    facts = {"workers": ctx.resources.workers, "threads": job.threads, "train_s": time.monotonic() - started}
    resumed = {} if job.resume is None else {"resumed_at_samples": job.resume.samples}
    return Outcome(metrics=result.metrics, summary=result.summary | facts | resumed, stopped=result.stopped)


def _alone(ctx: StageContext, job: TrainJob) -> TrainResult:
    def work(_: Any = None) -> Any:
        world = World(device=torch.device("cuda" if ctx.resources.gpus else "cpu"))
        return train(job, world, ctx.events, ctx.should_stop, ctx.out)

    if "ray" not in sys.modules or not sys.modules["ray"].is_initialized():
        return work()
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.WARNING)  # it recommends to report problems with local mode
    local: Any = TorchTrainer(work, scaling_config=ScalingConfig(num_workers=0), run_config=_run_config(ctx))
    return local.fit().return_value


def _several(ctx: StageContext, job: TrainJob) -> TrainResult:
    from ray.train import ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchConfig, TorchTrainer

    resources, place = ctx.resources, _Exchange(ctx.store.storage, ctx.fingerprint, ctx.checkpoints.generation)
    share = {"CPU": resources.cpus / resources.workers}
    if resources.memory_bytes is not None:
        share["memory"] = resources.memory_bytes // resources.workers
    if resources.gpus:
        share["GPU"] = resources.gpus / resources.workers
    trainer: Any = TorchTrainer(
        _work,
        train_loop_config={"job": job, "place": place, "environment": Environment.passed_on()},
        torch_config=TorchConfig(backend="nccl" if resources.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=resources.workers, use_gpu=bool(resources.gpus), resources_per_worker=share
        ),
        run_config=_run_config(ctx, callbacks=[_hears_sigterm()]),
    )
    try:
        with place.relayed(ctx.should_stop):
            result = trainer.fit().return_value
    except WorkerGroupError as error:
        raise _for_people(error.worker_failures) or error from None
    place.take(ctx.out)
    return result


def _work(config: dict[str, Any]) -> Any:
    """What each worker of the group does. What it prints is in the stage's log; what it raises, Ray writes down."""
    import ray.train
    import ray.train.torch

    config["environment"].enter()
    job, place = config["job"], config["place"]
    world, local_rank = current_world(ray.train.torch.get_device()), ray.train.get_context().get_local_rank()
    events = EventWriter(place.storage, job.checkpoints.fingerprint, job.checkpoints.generation)
    logs = LogWriter(place.storage, job.checkpoints.fingerprint, job.checkpoints.generation)
    with (
        tempfile.TemporaryDirectory() as folder,
        events,
        logs,
        captured_output(logs.write),
        place.watched(world.rank, local_rank) as should_stop,
    ):
        try:
            result = train(job, world, events, should_stop, Path(folder))
        except Exception as error:
            raise redact_error(error) from None
        if world.rank == 0:
            place.give(Path(folder))
        ray.train.report(result.metrics)
    return result


@dataclass(frozen=True)
class _Exchange:
    """A corner of the store's work area where the stage and its workers meet. Picklable.

    Attributes:
        token: of this attempt, so that nothing an earlier one left behind is taken for ours.
    """

    storage: Storage
    fingerprint: str
    generation: int
    token: str = ""

    def __post_init__(self) -> None:
        if not self.token:
            object.__setattr__(self, "token", secrets.token_hex(4))

    @property
    def _root(self) -> str:
        return f"work/{self.fingerprint}/{self.generation}/workers-{self.token}"

    def give(self, folder: Path) -> None:
        """Leave a folder's files for the stage."""
        for path in sorted(folder.iterdir()):
            self.storage.put(f"{self._root}/result/{path.name}", path)

    def take(self, folder: Path) -> None:
        """Move what was left into a folder."""
        for info in list(self.storage.list(f"{self._root}/result")):
            self.storage.download(info.key, folder / info.key.rpartition("/")[2])
            self.storage.delete(info.key)

    @contextmanager
    def relayed(self, should_stop: Callable[[], str | None]) -> Iterator[None]:
        """While inside, pass the stage's stop request on to the workers."""
        over = threading.Event()

        def relay() -> None:
            while not over.wait(STOP_POLL_S / 2):
                if (reason := should_stop()) is not None:
                    with suppress(StoreAway):  # told as soon as the store answers
                        self.storage.put(f"{self._root}/stop", reason.encode())
                        return

        with _thread(relay, over):
            yield
        with suppress(StoreAway):
            self.storage.delete(f"{self._root}/stop")

    @contextmanager
    def watched(self, rank: int, local_rank: int) -> Iterator[Callable[[], str | None]]:
        """While inside, a function that tells this rank's reason to stop; the loop tells the others.

        The first rank hears the stage's request, a node's first rank that its node is being drained, each its SIGTERM.
        """
        over = threading.Event()
        reasons: list[str] = []

        def watch() -> None:
            while (rank == 0 or local_rank == 0) and not reasons and not over.wait(STOP_POLL_S):
                with suppress(FileNotFoundError, StoreAway):
                    reasons.extend([self.storage.get(f"{self._root}/stop").decode()] if rank == 0 else ())
                reasons.extend([PREEMPTED] if local_rank == 0 and node_is_draining() else ())

        with _thread(watch, over), Notice.installed().heeded() as told:
            yield lambda: reasons[0] if reasons else told()


@contextmanager
def _thread(target: Callable[[], None], over: threading.Event) -> Iterator[None]:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _hears_sigterm() -> Any:
    """Puts a `Notice` into each worker: its training thread may not, and Ray's main thread does nothing else."""
    from ray.train.v2._internal.execution.callback import WorkerCallback

    class HearsSigterm(WorkerCallback):
        def after_init_train_context(self) -> None:
            Notice.installed()

    return HearsSigterm()


def _run_config(ctx: StageContext, callbacks: Sequence[Any] = ()) -> Any:
    """A name of this attempt alone (Ray would resume an old one), by which a person finds the stage; no storage of
    worth.
    """
    from ray.train import FailureConfig, RunConfig

    name = f"{ctx.stage}-{ctx.fingerprint[:8]}-{ctx.checkpoints.generation}-{secrets.token_hex(2)}"
    return RunConfig(
        name=name,
        storage_path=str(ctx.scratch.absolute() / "ray"),
        failure_config=FailureConfig(max_failures=0),
        callbacks=list(callbacks),
    )


def _for_people(failures: dict[int, Exception]) -> OrchError | None:
    """The first error among the workers' that was meant for people."""
    for failure in failures.values():
        error: BaseException | None = failure
        while error is not None:
            if isinstance(error, OrchError):
                return error
            error = error.__cause__ or getattr(error, "_base_exc", None)
    return None
