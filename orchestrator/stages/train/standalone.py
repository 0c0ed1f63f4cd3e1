"""Trains one stage of a recipe here, without Ray: for a debugger, a profiler, torchrun, a GPU machine that has no Ray.

`python -m orchestrator.training` calls this in one process, or in each of torchrun's. Plan, worker, loop and so the
numbers are those of `orch submit`; what differs is where things go. The stage's inputs are read from a store; what is
made goes into one folder:

    stage.json      which training this is: its fingerprint, and the payload it is the hash of
    checkpoints/    as a store keeps them
    events.jsonl    reports, progress, messages (store/events.py), one a line
    result.json     final metrics and facts, files with their digests
    model/          the Model, renamed into place last: once it is there, the training is finished

Nothing is published and no lease is taken, so a folder belongs to one such command at a time.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from orchestrator.data.source import identify
from orchestrator.errors import UserError
from orchestrator.io.storage import Storage
from orchestrator.models.external import describe_external
from orchestrator.plan.compile import compile, named
from orchestrator.plan.diff import diff
from orchestrator.plan.types import Node, Plan
from orchestrator.recipe.load import load
from orchestrator.stages import KINDS
from orchestrator.stages.preemption import PREEMPTED
from orchestrator.stages.train.config import TrainStage
from orchestrator.store.artifacts import Store, content_digest, describe
from orchestrator.store.checkpoints import CheckpointStore
from orchestrator.store.events import to_line

if TYPE_CHECKING:
    from orchestrator.stages.train.worker import TrainResult

GENERATION = 1
"""Generations tell the holders of a lease apart; a folder has one."""
STOPPED = 130
"""Exit code of a training that was asked to stop, as the command line's."""


@dataclass(frozen=True)
class Standing:
    """A training stage, and what it reads.

    Attributes:
        plan, node: the stage and all before it; the stage itself.
        store: where its inputs are.
        missing: stages whose results it needs and the store has not.
    """

    plan: Plan
    node: Node
    store: Store
    missing: tuple[str, ...]


def find(recipe: str, stage: str, store: Store, overrides: Sequence[str] = ()) -> Standing:
    """The stage of that name, as `orch plan` would have it.

    Raises:
        RecipeError: the recipe is wrong.
        UserError: there is no such stage, or it does not train.
    """
    loaded = load(recipe, overrides, kinds=KINDS)  # type: ignore[arg-type]
    names = named(loaded, stage)
    if len(names) > 1:
        raise UserError(f"'{stage}' means {len(names)} stages", f"name one of them: {', '.join(names)}")
    plan = compile(loaded, lambda source: identify(source, store), describe_external, until=names)
    node = plan.nodes[names[0]]
    if not isinstance(node.config, TrainStage):
        train = [name for name, spec in loaded.stages.items() if isinstance(spec.config, TrainStage)]
        raise UserError(
            f"stage '{stage}' is of kind {node.kind} and trains nothing",
            f"stages that do: {', '.join(train) or 'none'}",
        )
    return Standing(plan, node, store, tuple(n for n in node.upstream if not _finished(plan.nodes[n], store)))


def _finished(node: Node, store: Store) -> bool:
    return node.fingerprint is not None and store.find(node.kind, node.fingerprint) is not None


def check_inputs(standing: Standing, recipe: str, overrides: Sequence[str] = ()) -> None:
    """UserError that says how to make the inputs that are missing, if any are."""
    if not standing.missing:
        return
    node, url = standing.node, standing.store.url
    roles = {name: [i.key for i in node.inputs if i.stage == name] for name in standing.missing}
    needed = ", ".join(f"'{name}' (its {' and '.join(keys)})" for name, keys in roles.items())
    changes = [word for text in overrides for word in ("-s", text)]
    commands = [shlex.join(["orch", "submit", recipe, *changes, "--until", n, "--store", url]) for n in roles]
    raise UserError(
        f"stage '{node.name}' needs {needed}, which {url} does not have",
        f"make it first: {' && '.join(commands)}\n  or, where there is no Ray, in this process: add --make-inputs",
    )


def run(
    standing: Standing,
    out: Path,
    *,
    threads: int | None = None,
    device: str | None = None,
    say: Callable[[str], None],
) -> int:
    """Train the stage into a folder, from its last checkpoint; the exit code: 0 when finished, 130 when stopped.

    Args:
        standing: the stage, with no input missing.
        out: the folder, on a disk that all ranks see.
        threads: compute threads of each rank. Default: the stage's `resources.cpus`, shared by the ranks.
        device: `cpu` or `cuda`. Default: what the stage's `resources.gpus` asks for.
        say: takes lines for the person watching.

    Raises:
        UserError: the folder holds another training, or there is no GPU.
    """
    node, first = standing.node, os.environ.get("RANK", "0") == "0"
    _claim(out, node, first)
    if (out / "model").is_dir():
        if first:
            say(f"{node.name} is finished: its Model is in {out / 'model'}; remove {out} to train it anew")
        return 0
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    threads = threads or replace(node.resources, workers=world_size).threads
    device = device or ("cuda" if node.resources.gpus else "cpu")
    if first:
        workers = f" in each of {world_size} workers" if world_size > 1 else ""
        say(f"training {node.name} on {device}, {threads} threads{workers}, into {out}")
    return _train(standing, out, threads, device, say)


def _claim(out: Path, node: Node, first: bool) -> None:
    """Say in the folder which training it holds; UserError if it holds another."""
    record = out / "stage.json"
    names = {i.key: i.stage or str(i.external) for i in node.inputs}
    if record.is_file():
        held = json.loads(record.read_text())
        if held["fingerprint"] != node.fingerprint:
            changes = diff(held["payload"], node.payload or {}, type(node.config), held["inputs"], names)
            raise UserError(
                f"{out} holds another training ('{held['stage']}'): {'; '.join(changes) or 'another kind of stage'}",
                "choose another --out, or remove the folder",
            )
    elif first:
        out.mkdir(parents=True, exist_ok=True)
        held = {"stage": node.name, "fingerprint": node.fingerprint, "payload": node.payload, "inputs": names}
        _write(record, held)


def _train(standing: Standing, out: Path, threads: int, device: str, say: Callable[[str], None]) -> int:
    import torch

    from orchestrator.stages.train.worker import TrainJob, train
    from orchestrator.training.distributed import from_all_ranks, from_environment

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU that torch can use", "train with --device cpu, or install torch for this GPU")
    node = standing.node
    assert isinstance(node.config, TrainStage)
    assert node.fingerprint is not None
    checkpoints = CheckpointStore(Storage.open(str(out / "checkpoints")), node.fingerprint, GENERATION)
    with stop_requests(say) as should_stop, from_environment(device) as world:
        job = TrainJob(
            config=node.config,
            inputs={i.key: _handle(standing, i.stage, i.output) for i in node.inputs if i.stage is not None},
            names={i.key: i.stage or str(i.external) for i in node.inputs},
            checkpoints=checkpoints,
            resume=checkpoints.latest(),
            threads=threads,
        )
        unfinished = out / "model.part"
        if world.rank == 0:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
        with Events(out / "events.jsonl", node.name, say) as events:
            started = time.monotonic()
            result = train(job, world, events, should_stop, unfinished)
        if world.rank == 0:
            facts = {"workers": world.size, "threads": threads, "train_s": time.monotonic() - started}
            _finish(replace(result, summary=result.summary | facts), unfinished, out, say)
            if result.stopped is None:
                checkpoints.clear()
        from_all_ranks(None, world)  # a rank that ends before the first one is done makes torchrun end that one, too
    return 0 if result.stopped is None else STOPPED


def _handle(standing: Standing, stage: str, output: str) -> Any:
    made = standing.plan.nodes[stage]
    return standing.store.handle(made.kind, str(made.fingerprint), output)


def _finish(result: TrainResult, unfinished: Path, out: Path, say: Callable[[str], None]) -> None:
    """Put the Model in its place, its files on the disk for good; or say how a stopped training goes on."""
    if result.stopped is not None:
        unfinished.rmdir()
        samples = result.summary["samples"]
        say(f"stopped ({result.stopped}) at {samples:,} samples; the same command goes on from there")
        return
    files = describe(unfinished)
    facts = {"content_digest": content_digest(files), "files": {name: asdict(file) for name, file in files.items()}}
    _write(out / "result.json", {"metrics": result.metrics, "summary": result.summary, **facts})
    os.replace(unfinished, out / "model")
    say(f"finished: the Model is in {out / 'model'}, its figures in {out / 'result.json'}")


def _write(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(part, path)


@contextmanager
def stop_requests(say: Callable[[str], None]) -> Iterator[Callable[[], str | None]]:
    """While inside, SIGTERM and Ctrl-C ask to stop: a function that tells why. The second one ends the process."""
    reasons: list[str] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if reasons:
            raise KeyboardInterrupt
        reasons.append("cancelled" if number == signal.SIGINT else PREEMPTED)
        say(f"{reasons[0]}: a checkpoint is written after this step; once more ends it now")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: reasons[0] if reasons else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Events:
    """The event sink (`stages.base.EventSink`) of a folder: appends to a file, and says what people want to know."""

    def __init__(self, path: Path, stage: str, say: Callable[[str], None]) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._stage, self._say, self._total = stage, say, 0

    def emit(self, type: str, **fields: Any) -> None:
        try:
            os.write(self._file, to_line(type, fields))
        except OSError as error:
            self._say(f"an event was not written: {error}")
        if type == "progress":
            self._total = fields["total"]
        spoken = self._spoken(type, fields)
        if spoken:
            self._say(f"{self._stage}  {spoken}")

    def flush(self) -> bool:
        return True

    def _spoken(self, type: str, fields: Mapping[str, Any]) -> str:
        if type == "report":
            return _figures(fields["samples"], self._total, fields["metrics"])
        if type == "message":
            return f"{fields['level']}: {fields['text']}"
        if type == "resumed":
            return f"goes on from the checkpoint at {fields['samples']:,} samples"
        return f"phase {fields['name']}" if type == "phase" and fields["name"] != "train" else ""

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._file)


def _figures(samples: int, total: int, metrics: Mapping[str, float]) -> str:
    """A report in a line: of training, or of a validation."""
    found = [f"{samples:,} of {total:,} samples"]
    if "loss" in metrics:
        found.append(f"loss {metrics['loss']:.4f}")
    if "samples_per_s" in metrics:
        found.append(f"{metrics['samples_per_s']:,.0f} samples/s")
        found.append(f"wait {metrics['data_wait_share']:.0%}")
    if "mfu" in metrics:
        found.append(f"mfu {metrics['mfu']:.0%}")
    found += [f"{name} {value:.4g}" for name, value in metrics.items() if name.startswith(("val/", "best/"))]
    return "  ".join(found)
