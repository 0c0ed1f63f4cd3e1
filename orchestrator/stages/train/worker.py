"""One training worker: opens the data, builds the models, runs the loop, saves the Model. No Ray in here.

`run.py` calls `train` in its own process, or in each of several workers of a Ray trainer; a debugger may call it too.
All ranks do the same; the first one alone writes checkpoints, events and the Model.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orchestrator.data.bad import Tally
from orchestrator.data.captions import compose
from orchestrator.data.dataset import Dataset
from orchestrator.data.draws import NUM_DRAWS
from orchestrator.data.embeddings import StoredViews
from orchestrator.data.loader import Loader
from orchestrator.data.preprocess import Preprocess, Tokenizer
from orchestrator.evaluation.validation import Validation
from orchestrator.models import artifact, compute
from orchestrator.models.count import count
from orchestrator.models.inheritance import inherit
from orchestrator.models.locked import lock
from orchestrator.stages.base import EventSink
from orchestrator.stages.models import load_input
from orchestrator.stages.train.config import TrainStage
from orchestrator.stages.train.data import TrainingData, to_train_on
from orchestrator.store.artifacts import Handle
from orchestrator.store.checkpoints import CheckpointRef, CheckpointStore
from orchestrator.training import checkpoint
from orchestrator.training.loop import fit
from orchestrator.training.method import Build, Method
from orchestrator.training.types import FitSpec, Report, World

STATE = "state.pt"
"""The one file of a checkpoint."""
WAITING = 0.1
"""Share of the time above which waiting for data is worth a warning."""
GENERATED_ALONE = (
    "generated captions alone are seen: similar images then have equal captions, and contrastive trainings were seen "
    "to collapse (TL;DR, figure 3); join them to the originals: captions: {join: [original, generated]}"
)


@dataclass(frozen=True)
class TrainJob:
    """What every worker of a stage is told. Picklable.

    Attributes:
        config, inputs, names: of the stage; `names` has the reference of each external model too.
        checkpoints: the stage's place for them.
        resume: the checkpoint to go on from, the same for all workers.
        threads: compute threads of one worker.
    """

    config: TrainStage
    inputs: Mapping[str, Handle]
    names: Mapping[str, str]
    checkpoints: CheckpointStore
    resume: CheckpointRef | None
    threads: int


@dataclass(frozen=True)
class TrainResult:
    """How a training ended: the final report's metrics, facts about the run, and why it stopped early, if it did."""

    metrics: dict[str, float]
    summary: dict[str, Any]
    stopped: str | None


def train(
    job: TrainJob, world: World, events: EventSink, should_stop: Callable[[], str | None], out: Path
) -> TrainResult:
    """Train from the last checkpoint to the end, or until asked to stop. The first rank saves the Model into `out`."""
    torch.set_num_threads(job.threads)
    config = job.config
    everything = Dataset.open(job.inputs["data"])
    if world.rank == 0:
        everything.check_shards()
    dataset = to_train_on(everything)
    total = config.total_samples(len(dataset))
    stored = _stored_views(job, dataset)
    method, preprocess, tokenizer = _build(job, world, total, dataset, stored)

    def warn(line: str) -> None:
        events.emit("message", level="warning", text=line)

    data = TrainingData(job, dataset, stored, Tally(everything.name, len(everything), config.max_bad, tell=warn))
    if world.rank == 0 and data.captions.generated_alone:
        warn(GENERATED_ALONE)

    def loader(start: int) -> Loader:
        return data.open(method, preprocess, tokenizer, world, start)

    with checkpoint.BackgroundWriter(lambda samples, data: _keep(job, events, samples, data)) as writer:
        io = StageIO(job, world.rank, events, should_stop, writer, total, data)
        validate = _validation(job, everything, preprocess, tokenizer, data.tally)
        spec = FitSpec(config, total, preprocess.normalise, validate, epoch_samples=len(dataset))
        reports = fit(spec, method, loader, world, io)
        report = deque(reports, maxlen=1).pop()
    if report.weights is not None and world.rank == 0:
        artifact.save(method.result(), preprocess, tokenizer, out, report.weights)
    data.gather(world)
    sizes = count(method.result())
    parameters = {"parameters": sizes.total, "parameters_without_token_table": sizes.without_token_table}
    summary = {
        "samples": report.samples,
        "training_set_size": len(dataset),
        "epochs": report.samples / len(dataset),
        "precision": config.precision,
        "device": world.device.type,
        **data.summary(),
    }
    metrics = dict(report.metrics) | {name: float(value) for name, value in parameters.items()} | data.metrics()
    return TrainResult(metrics, summary, report.stopped)


def _stored_views(job: TrainJob, dataset: Dataset) -> StoredViews | None:
    """The teacher's features that an `embed` stage made of these samples, if the recipe has any."""
    if "teacher_features" not in job.inputs:
        return None
    stored = StoredViews.open(job.inputs["teacher_features"])
    stored.require(dataset.column("uid"))
    return stored


def _build(
    job: TrainJob, world: World, total: int, dataset: Dataset, stored: StoredViews | None
) -> tuple[Method, Preprocess, Tokenizer]:
    """The method over the model with its initial weights, and how images and captions are prepared for it.

    Pixels are normalised as the teacher, else the model whose weights are taken, was trained to see them.
    """
    config = job.config
    module, _, name = config.method.runner.partition(":")
    runner: type[Method] = getattr(importlib.import_module(module), name)
    model = runner.make_model(config.method, config.model.open_clip, config.seed)
    preprocess = Preprocess(config.model.image_size)
    tokenizer = Tokenizer(context_length=config.model.context_length)
    teacher = teacher_preprocess = teacher_tokenizer = source = None
    if config.init is not None:
        source, preprocess, _ = load_input(job.inputs, job.names, "init.from", "cpu")
        inherit(model, source, config.init.mode)
    if stored is not None:
        teacher_preprocess, teacher_tokenizer = stored.about.preprocess, stored.about.tokenizer
        preprocess = teacher_preprocess
    elif "teacher" in job.names:
        found = load_input(job.inputs, job.names, "teacher", world.device)
        teacher, teacher_preprocess, teacher_tokenizer = found
        preprocess = teacher_preprocess
    preprocess = dataclasses.replace(preprocess, image_size=config.model.image_size)
    _arrange(model, config)
    build = Build(
        model=model.to(world.device),
        teacher=teacher,
        total_samples=total,
        batch=config.batch,
        world=world,
        seed=config.seed,
        preprocess=preprocess,
        tokenizer=tokenizer,
        teacher_preprocess=teacher_preprocess,
        teacher_tokenizer=teacher_tokenizer,
        stored=stored,
        inherited=type(source) is type(model),
        captions=lambda limit: _captions(dataset, config, tokenizer, limit),
    )
    return runner(config.method, build).to(world.device), preprocess, tokenizer


def _captions(dataset: Dataset, config: TrainStage, tokenizer: Tokenizer, limit: int) -> list[str]:
    """What is seen as the caption of each of at most `limit` samples, evenly spaced in the data set's order."""
    rows = np.linspace(0, len(dataset) - 1, min(limit, len(dataset))).astype(np.int64)
    first = (0.0,) * NUM_DRAWS
    return [compose(captions, config.captions, first, tokenizer.shorten) for captions in dataset.captions(rows)]


def _arrange(model: Any, config: TrainStage) -> None:
    """Freeze what is to stay, and choose how the network computes: the settings that no saved model knows of."""
    lock(model, **config.locked.model_dump())
    if config.patch_dropout is not None:
        compute.set_patch_dropout(model, config.patch_dropout)
    if config.recompute:
        compute.recompute_activations(model)
    if config.resources.gpus:
        compute.use_channels_last(model)
    if config.compile:
        compute.compile_blocks(model)


def _validation(
    job: TrainJob, data: Dataset, preprocess: Preprocess, tokenizer: Tokenizer, tally: Tally
) -> Validation | None:
    wanted = job.config.validation
    if wanted is None:
        return None
    return Validation(
        data,
        preprocess,
        tokenizer,
        split=wanted.split,
        limit=wanted.limit,
        group=wanted.batch,
        threads=job.threads,
        tally=tally,
    )


def _keep(job: TrainJob, events: EventSink, samples: int, data: bytes) -> None:
    events.flush()  # points below a checkpoint are not computed again
    job.checkpoints.save(samples, {STATE: data})
    job.checkpoints.prune(job.config.keep_checkpoints)


class StageIO:
    """The loop's doors (training/types.py `TrainIO`) as a stage has them: its checkpoints, events and stop request."""

    def __init__(
        self,
        job: TrainJob,
        rank: int,
        events: EventSink,
        should_stop: Callable[[], str | None],
        writer: checkpoint.BackgroundWriter,
        total: int,
        data: TrainingData,
    ) -> None:
        self._job, self._rank, self._events, self._writer, self._total = job, rank, events, writer, total
        self._should_stop, self._data = should_stop, data
        self._waits = 0

    def save(self, samples: int, state: Mapping[str, Any]) -> None:
        self._writer.save(samples, state)

    def load(self) -> Mapping[str, Any] | None:
        ref = self._job.resume
        if self._rank == 0:
            if ref is not None:
                self._events.emit("resumed", samples=ref.samples, generation=ref.generation)
            self._progress(0 if ref is None else ref.samples)
        if ref is None:
            return None
        state = checkpoint.from_bytes(self._job.checkpoints.read(ref, STATE))
        self._data.restore(state.get("kept", []), self._rank)
        return state

    def kept(self) -> dict[str, Any]:
        return self._data.state()

    def report(self, report: Report) -> None:
        num_bytes, requests = self._data.traffic
        figures = {"read_bytes": float(num_bytes), "read_requests": float(requests), **self._data.metrics()}
        self._events.emit("report", samples=report.samples, metrics=dict(report.metrics) | figures)
        self._progress(report.samples)
        self._warn_of_waiting(report.metrics.get("data_wait_share", 0.0))

    def _warn_of_waiting(self, share: float) -> None:
        """Say once what to change, when two reports in a row (the first fills caches) show a training that waits."""
        self._waits = self._waits + 1 if share > WAITING else 0
        if self._waits == 2:
            self.message(
                "warning",
                f"{share:.0%} of the time goes into waiting for data: give the stage more `resources.cpus`, or shards "
                "of smaller images",
            )

    def phase(self, name: str) -> None:
        self._events.emit("phase", name=name)

    def message(self, level: str, text: str) -> None:
        self._events.emit("message", level=level, text=text)

    def nonfinite(self, samples: int, uids: Sequence[str]) -> None:
        places = self._job.checkpoints
        key = f"work/{places.fingerprint}/{places.generation}/nonfinite-{samples}.json"
        places.storage.put(key, json.dumps({"samples": samples, "uids": list(uids)}).encode())
        self.message("error", f"loss not finite at {samples:,} samples; the ids of its batch are in {key}")

    def should_stop(self) -> str | None:
        return self._should_stop()

    def _progress(self, samples: int) -> None:
        self._events.emit("progress", done=samples, total=self._total, unit="samples")
