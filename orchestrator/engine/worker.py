"""Does one `Job` in whatever process it is called in, and reports how it ended. The only caller of stages' runners.

It opens the store, gives the stage a directory, events, checkpoints and a stop request, runs it, and uploads what it
wrote as one attempt's files. It publishes nothing. Threads are set from the job's resources, never from the machine.
"""

from __future__ import annotations

import errno
import importlib
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from orchestrator.engine.job import Job, WorkerResult
from orchestrator.engine.publish import upload
from orchestrator.errors import OrchError, StageError, StoreAway, WorkerLost
from orchestrator.io.home import temporary
from orchestrator.io.redact import redact, redact_error
from orchestrator.stages.base import Outcome, StageContext
from orchestrator.stages.preemption import PREEMPTED
from orchestrator.store.artifacts import Store
from orchestrator.store.capture import captured_output
from orchestrator.store.checkpoints import CheckpointStore
from orchestrator.store.events import EventWriter
from orchestrator.store.logs import LogWriter
from orchestrator.store.provenance import host, packages
from orchestrator.training.threads import share_cores

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
SYSTEM_EVERY_S = 5.0
HUNG_UP = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
"""What gloo and NCCL say of a rank that is gone."""
_FULL = re.compile(r"No space left on device|Disk quota exceeded|os error (28|122)\b|\d+ requested and \d+ written")
"""How libraries that raise errors of their own spell a full disk: safetensors, numpy."""

ShouldStop = Callable[[], str | None]


def run_stage(job: Job, should_stop: ShouldStop, capture: bool = True) -> WorkerResult:
    """Do the job. Never raises: what the runner raised is in the result.

    Args:
        should_stop: None, or why to checkpoint and stop.
        capture: send this process's output to the stage's log (only where the process has nothing else to say).
    """
    started, clock = time.time(), time.monotonic()
    facts: dict[str, Any] = {}
    try:
        facts = _facts(job)
        outcome, files = _run(job, should_stop, capture)
        result = WorkerResult(outcome, files)
    except OrchError as error:
        result = WorkerResult(None, error=redact_error(error), traceback=redact(traceback.format_exc()))
    except Exception as error:
        known = _lost_worker(error) or _store_away(error)
        result = WorkerResult(None, error=known or _portable(error), traceback=redact(traceback.format_exc()))
    return WorkerResult(
        result.outcome, result.files, result.error, result.traceback, facts, started, time.monotonic() - clock
    )


def _run(job: Job, should_stop: ShouldStop, capture: bool) -> tuple[Outcome, Any]:
    set_threads(job.resources.threads)
    store = Store.open(job.store)
    _check_in_sight(store, job)
    with ExitStack() as stack:
        events = stack.enter_context(EventWriter(store.storage, job.fingerprint, job.generation))
        logs = stack.enter_context(LogWriter(store.storage, job.fingerprint, job.generation))
        if capture:
            stack.enter_context(captured_output(logs.write))
        stack.enter_context(system_events(events))
        scratch = stack.enter_context(scratch_directory())
        out = store.attempt_dir(job.kind, job.fingerprint, job.attempt)
        unfinished = stack.enter_context(ExitStack())
        unfinished.callback(shutil.rmtree, out, ignore_errors=True)
        context = _context(job, store, events, out, scratch, should_stop)
        runner = load(type(context.config).runner)
        set_threads(job.resources.threads)  # again: importing the runner may have brought torch in
        try:
            outcome = runner(context)
        except Exception as error:
            logs.write(traceback.format_exc())
            if (full := _full_disk(error, out, scratch)) is None:
                raise
            raise full from error
        if outcome.stopped is not None:
            _tell_stop(outcome, events, logs)
            return outcome, {}
        files = upload(store, job, out, outcome, should_stop)
        if store.storage.local(job.kind) is not None:
            unfinished.pop_all()  # the files lie in their place
    return outcome, files


def _check_in_sight(store: Store, job: Job) -> None:
    """OrchError where a folder of that name is here, but not the submitter's: what is written would be lost."""
    record = store.storage.local(f"runs/{job.run}/plan.json")
    if record is not None and not record.exists():
        raise OrchError(
            f"the worker on node '{socket.gethostname()}' does not see the submitter's store {store.url}",
            "use a store that every node sees: `--store s3://bucket/prefix`, or a folder on a shared file system",
        )


def _tell_stop(outcome: Outcome, events: EventWriter, logs: LogWriter) -> None:
    """Leave in the stage's log and events why it ended before its work was complete."""
    samples = outcome.summary.get("samples")
    text = str(outcome.stopped) + ("" if samples is None else f" at {samples:,} samples: its checkpoint is kept")
    logs.write(f"{text}\n")
    if outcome.stopped == PREEMPTED:
        events.emit("message", level="warning", text=text)


def _context(
    job: Job, store: Store, events: EventWriter, out: Path, scratch: Path, should_stop: ShouldStop
) -> StageContext:
    inputs = {key: store.handle(i.kind, i.fingerprint, i.output) for key, i in job.inputs.items()}
    return StageContext(
        run_id=job.run,
        stage=job.stage,
        kind=job.kind,
        fingerprint=job.fingerprint,
        config=load(job.config_class).model_validate_json(job.config),
        inputs=inputs,
        input_names={**{key: i.name for key, i in job.inputs.items()}, **job.external},
        store=store,
        out=out,
        scratch=scratch,
        checkpoints=CheckpointStore(store.storage, job.fingerprint, job.generation),
        resources=job.resources,
        events=events,
        should_stop=should_stop,
        sources=job.sources,
    )


def load(target: str) -> Any:
    """The object that "module:name" stands for."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def set_threads(threads: int) -> None:
    """Compute threads of this process, for libraries not loaded yet and for torch if it is."""
    share_cores(os.environ)
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(threads)
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """A directory that is removed at the end; those that killed processes left behind are removed first."""
    root = temporary()
    for leftover in root.iterdir():
        owner = leftover.name.split("-", 1)[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists() and Path("/proc").exists():
            shutil.rmtree(leftover, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def system_events(events: EventWriter) -> Iterator[None]:
    """Emit what the process and the machine use, every few seconds."""
    import psutil

    process, over = psutil.Process(), threading.Event()
    process.cpu_percent()

    def watch() -> None:
        while not over.wait(SYSTEM_EVERY_S):
            metrics = {
                "system/process_cpu_percent": process.cpu_percent(),
                "system/process_memory_gb": process.memory_info().rss / 1e9,
                "system/memory_percent": psutil.virtual_memory().percent,
                "system/load": os.getloadavg()[0],
            }
            events.emit("system", metrics=metrics)

    thread = threading.Thread(target=watch, name="system", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _facts(job: Job) -> dict[str, Any]:
    budget = {"threads": job.resources.threads, "workers": job.resources.workers, "gpus": job.resources.gpus}
    return {"host": host(), "packages": packages(), **budget, "cpus": job.resources.cpus}


def _lost_worker(error: BaseException) -> WorkerLost | None:
    """`WorkerLost` where the error comes from a Ray process or node that died under the stage (a rank)."""
    ray = sys.modules.get("ray")
    if ray is None:
        return None
    found = list(_within(error))
    for failure in found:
        if isinstance(failure, ray.exceptions.RayActorError):
            return WorkerLost(str(failure).splitlines()[0], preempted=failure.preempted)
        if isinstance(failure, ray.exceptions.WorkerCrashedError | ray.exceptions.NodeDiedError):
            return WorkerLost(str(failure).splitlines()[0])
    if any(hasattr(failure, "worker_failures") for failure in found):
        for failure in found:  # what a rank says whose neighbour died may come before the news of that death
            if isinstance(failure, RuntimeError) and any(words in str(failure) for words in HUNG_UP):
                return WorkerLost("one of its workers no longer answers the others")
    return None


def _within(error: BaseException) -> Iterator[BaseException]:
    """An error, those of Ray Train's ranks in it, and what they wrap or were caused by."""
    yield error
    wrapped = [getattr(error, name, None) for name in ("health_check_failure", "_base_exc", "__cause__")]
    for inner in (*getattr(error, "worker_failures", {}).values(), *wrapped):
        if isinstance(inner, BaseException):
            yield from _within(inner)


def _store_away(error: BaseException | None) -> StoreAway | None:
    """`StoreAway` where that is what some library stumbled over."""
    while error is not None and not isinstance(error, StoreAway):
        error = error.__cause__ or error.__context__
    return error


def _portable(error: Exception) -> Exception:
    """The error in a form that survives the way to another process; memory and disk that ran out, with the remedy."""
    text = redact(f"{type(error).__name__}: {error}")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return StageError(f"out of memory: {text}", "lower micro_batch or batch, or give the stage more memory")
    return _full_disk(error) or RuntimeError(text)


def _full_disk(error: Exception, *folders: Path) -> StageError | None:
    """The error for people, with the room that is left in these folders, if it is one of a full disk."""
    told = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OrchError) or not (told or _FULL.search(str(error))):
        return None
    left = "".join(f"; {folder} has {shutil.disk_usage(folder).free / 1e6:,.0f} MB left" for folder in folders)
    return StageError(
        redact(f"the disk is full: {type(error).__name__}: {error}{left}"),
        "make room; finished stages and checkpoints are kept, submitting again goes on",
    )
