"""Runs an `embed` stage: all views of all samples, then each distinct caption once, in blocks that are kept as parts.

Declared files are in uid order and hold neither names nor timings, so two recipes that ask for the same features
otherwise, by however many workers, make the same Embeddings.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import torch

from orchestrator.data.bad import Tally
from orchestrator.data.embeddings import About, Array, finish
from orchestrator.errors import DataError
from orchestrator.models.external import identify_external
from orchestrator.stages.base import Outcome, StageContext
from orchestrator.stages.blocks import Pass, do
from orchestrator.stages.embed.config import EmbedStage
from orchestrator.stages.embed.worker import CAPTIONS, Made, Task, Worker
from orchestrator.store.parts import Parts

FIGURES = {"image": "image_features", "text": "text_features", "codes": "image_codes"}
"""Array -> the metric that says how many things it holds."""


def run(ctx: StageContext) -> Outcome:
    """Embed what has no part yet; when asked to stop, finish the blocks in flight and keep their parts."""
    config = ctx.config
    assert isinstance(config, EmbedStage)
    torch.set_num_threads(ctx.resources.threads)
    task = Task(config, ctx.inputs, ctx.input_names, Parts(ctx.store.storage, ctx.fingerprint), ctx.resources)
    alone = ctx.resources.workers == 1
    worker = Worker(task, "cuda" if alone and ctx.resources.gpus else "cpu")
    dataset, name = worker.dataset, worker.everything.name
    worker.everything.check_shards()
    if not len(dataset):
        raise DataError(
            f"'{name}' has no sample in the split '{config.split}'",
            "choose another `split` in this stage; `split: null` embeds all samples",
        )
    order = np.argsort(dataset.column("uid"), order=("high", "low"))
    names = config.arrays(worker.encoder.model.capabilities)
    if "text" in names and task.parts.find(CAPTIONS, 0) is None:
        task.parts.put(CAPTIONS, 0, worker.batches.distinct(order).pack())
    rows = {array: _rows(worker, array, order) for array in names}
    steps, started = _Steps(ctx, task, {array: len(at) for array, at in rows.items()}), time.monotonic()
    tally, arrays = Tally(name, len(worker.everything), config.max_bad), []
    for array in names:
        one = Pass(task.pass_name(array), steps.begin(array), partial(worker.work if alone else task.open, array))
        reason = do(one, task.parts, ctx.resources, ctx.should_stop, steps.on_block)
        if reason is not None:
            return Outcome(stopped=reason)
        arrays.append(_assembled(ctx, worker, array, rows[array], tally))
    if tally.found.counts:
        ctx.events.emit("message", level="warning", text=f"left out: {tally.found}")
    about = About(
        model=_identity(ctx, "model"),
        data=_identity(ctx, "data"),
        split=config.split,
        views=config.views,
        seed=config.seed,
        augment=config.augment,
        captions=config.captions,
        preprocess=worker.encoder.preprocess,
        tokenizer=worker.encoder.tokenizer,
        scale=worker.encoder.scale(),
    )
    finish(ctx.out, about, dataset.column("uid")[order].view(np.uint8).reshape(-1, 16), arrays)
    sizes = {"samples": len(dataset), **{FIGURES[array]: len(at) for array, at in rows.items()}}
    summary = {
        "precision": config.precision,
        "device": "cuda" if ctx.resources.gpus else "cpu",
        "encoded_per_s": (steps.total - steps.resumed) / (time.monotonic() - started),
        "resumed_at": steps.resumed,
        "bad_samples": tally.found.as_json(),
    }
    return Outcome(metrics={name: float(value) for name, value in sizes.items()}, summary=summary)


class _Steps:
    """The blocks of all arrays as one row of progress."""

    def __init__(self, ctx: StageContext, task: Task, sizes: dict[str, int]) -> None:
        self._events, self._task, self._sizes = ctx.events, task, sizes
        self._array, self._before = "", 0
        self.total = sum(sizes.values())
        there = {array: len(task.parts.done(task.pass_name(array))) * task.block(array) for array in sizes}
        self.resumed = sum(min(size, there[array]) for array, size in sizes.items())
        if self.resumed:
            ctx.events.emit("resumed", samples=self.resumed, generation=ctx.checkpoints.generation)

    def begin(self, array: str) -> range:
        """The blocks of the next array."""
        self._before += self._sizes.get(self._array, 0)
        self._array = array
        self._events.emit("phase", name=array)
        return range(-(-self._sizes[array] // self._task.block(array)))

    def on_block(self, done: int, total: int) -> None:
        """Tell how far the array is."""
        here = min(done * self._task.block(self._array), self._sizes[self._array])
        self._events.emit("progress", done=self._before + here, total=self.total, unit="samples")


def _rows(worker: Worker, array: str, order: np.ndarray) -> np.ndarray:
    """Row of an array for each thing that is encoded, in the order in which it is; `order` is that of uids."""
    if array == "text":
        return worker.distinct.places
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    views = worker.task.views
    return (place[:, None] * views + np.arange(views)).ravel()


def _assembled(ctx: StageContext, worker: Worker, array: str, rows: np.ndarray, tally: Tally) -> Array:
    """An array of all its parts, read one at a time; DataError if they met too many bad samples."""
    task = worker.task
    made, size = None, task.block(array)
    for block, start in enumerate(range(0, len(rows), size)):
        values, bad = Made.unpack(task.parts.get(task.pass_name(array), block))
        if made is None:
            shown = worker.distinct.rows if array == "text" else None
            made = Array(ctx.out, array, (len(rows), *values.shape[1:]), values.dtype, shown)
        made.values[rows[start : start + size]] = values
        tally.restore(bad)
    assert made is not None
    tally.check()
    return made


def _identity(ctx: StageContext, key: str) -> str:
    """What identifies an input: its fingerprint, or what an external model is known by."""
    handle = ctx.inputs.get(key)
    return identify_external(ctx.input_names[key]) if handle is None else handle.manifest.fingerprint
