"""Runs an `evaluate` stage: lays out the questions, lets one model after another answer them, writes the Report.

Files of a Report:

    metrics.json          what was asked (sizes, chance) and each model's figures, by place in `models`
    paired.json           differences and ratios between models, with paired intervals
    predictions.parquet   every question's rank by every model, in uid order
    retrieval.png, .json  captions and what each model retrieves (undeclared; where retrieval is a task)

One model is in memory at a time. Declared files hold no names and no timings, so two recipes that call the same models
otherwise make the same Report; names and speeds are in the manifest.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orchestrator.data.bad import Tally
from orchestrator.data.dataset import Dataset
from orchestrator.errors import Cancelled
from orchestrator.evaluation import metrics, picture
from orchestrator.evaluation.config import Retrieval
from orchestrator.evaluation.encode import BadImages, encode, without
from orchestrator.evaluation.figures import Ranks, describe, figures, predictions
from orchestrator.evaluation.protocol import Gallery, Measure, galleries
from orchestrator.models.count import count
from orchestrator.models.interface import Model
from orchestrator.stages.base import Outcome, StageContext
from orchestrator.stages.evaluate.config import EvaluateStage
from orchestrator.stages.models import distinct, load_input

ROW_GROUP = 1 << 16


def run(ctx: StageContext) -> Outcome:
    """Evaluate; a stop request is obeyed between batches and leaves nothing behind."""
    config = ctx.config
    assert isinstance(config, EvaluateStage)
    torch.set_num_threads(ctx.resources.threads)
    dataset = Dataset.open(ctx.inputs["data"])
    dataset.check_shards()

    def warn(line: str) -> None:
        ctx.events.emit("message", level="warning", text=line)

    tally = Tally(dataset.name, len(dataset), config.max_bad, tell=warn)
    while True:
        try:
            outcome = _evaluate(ctx, config, dataset)
        except BadImages as found:  # by the first model, for all: then the questions are laid out without them
            dataset = without(dataset, found, tally)
        else:
            return replace(outcome, summary={**outcome.summary, "bad_samples": tally.found.as_json()})


def _evaluate(ctx: StageContext, config: EvaluateStage, dataset: Dataset) -> Outcome:
    """Ask all models about these samples. BadImages if some cannot be decoded."""
    measures = [measure for task in config.tasks for measure in _runner(task.runner)(task, dataset)]
    shown = [_gallery(task, dataset) for task in config.tasks if isinstance(task, Retrieval)]
    keys = [f"models.{place}" for place in range(len(config.models))]
    ranks, sizes, speeds, found = [], [], [], []
    try:
        for key, encoded in _encoded(ctx, config, dataset, measures, keys):
            ranks.append({measure.name: measure.rank(encoded) for measure in measures})
            sizes.append(_sizes(encoded.model))
            speeds.append({"images_per_s": encoded.images_per_s, "texts_per_s": encoded.texts_per_s})
            found += [picture.find(ctx.input_names[key], gallery, encoded) for gallery in shown]
    except Cancelled as stop:
        return Outcome(stopped=stop.message)
    flat, pairs = figures(measures, ranks, config.bootstrap, config.seed)
    _write(ctx.out, config, measures, [size | figure for size, figure in zip(sizes, flat)], pairs)
    _write_predictions(ctx.out, measures, ranks, dataset.uids)
    for gallery in shown:
        picture.draw(gallery, found, dataset, config.seed, ctx.out / "retrieval.png")
        shown_as_ids = json.dumps(picture.describe(gallery, found, dataset, config.seed), ensure_ascii=False)
        (ctx.out / "retrieval.json").write_text(shown_as_ids, encoding="utf-8")
    names = distinct([ctx.input_names[key] for key in keys])
    return Outcome(
        metrics={
            f"{name}/{figure}": value
            for name, *parts in zip(names, sizes, speeds, flat)
            for part in parts
            for figure, value in part.items()
        },
        summary={"models": names, "data": ctx.input_names["data"], "speeds": speeds},
        undeclared=("retrieval.png", "retrieval.json") if shown else (),
    )


def _encoded(
    ctx: StageContext, config: EvaluateStage, dataset: Dataset, measures: Sequence[Measure], keys: Sequence[str]
):
    """(input key, Encoded) of each model, one after another; raises Cancelled when asked to stop."""
    rows = np.unique(np.concatenate([measure.image_rows for measure in measures])).tolist()
    texts = sorted({text for measure in measures for text in measure.texts})
    device = torch.device("cuda" if ctx.resources.gpus else "cpu")
    total, done = len(keys) * (len(rows) + len(texts)), 0

    def tick(number: int) -> None:
        nonlocal done
        done += number
        ctx.events.emit("progress", done=done, total=total, unit="samples")
        if reason := ctx.should_stop():
            raise Cancelled(reason)

    for key in keys:
        ctx.events.emit("phase", name=ctx.input_names[key])
        model, preprocess, tokenizer = load_input(ctx.inputs, ctx.input_names, key, device)
        yield (
            key,
            encode(
                model,
                preprocess,
                tokenizer,
                dataset,
                rows,
                texts,
                batch=config.batch,
                threads=ctx.resources.threads,
                tick=tick,
            ),
        )


def _sizes(model: Model) -> dict[str, float]:
    sizes = count(model)
    return {
        "parameters": float(sizes.total),
        "parameters_without_token_table": float(sizes.without_token_table),
    }


def _gallery(task: Retrieval, dataset: Dataset) -> Gallery:
    """The gallery to picture: of the last split (`ood` where it is there), the largest style."""
    there = galleries(task, dataset)
    return max((g for g in there if g.split == there[-1].split), key=lambda g: len(g.rows))


def _runner(name: str) -> Callable[..., list[Measure]]:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def _write(
    out: Path, config: EvaluateStage, measures: Sequence[Measure], flat: Sequence[dict[str, float]], pairs: Any
) -> None:
    intervals = {"level": metrics.LEVEL, "samples": config.bootstrap, "seed": config.seed}
    record = {
        "format": 1,
        "intervals": intervals,
        "measures": [describe(measure) for measure in measures],
        "models": list(flat),
    }
    for name, value in (
        ("metrics.json", record),
        ("paired.json", {"format": 1, "intervals": intervals, "pairs": pairs}),
    ):
        (out / name).write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def _write_predictions(out: Path, measures: Sequence[Measure], ranks: Sequence[Ranks], uids: Sequence[str]) -> None:
    import pyarrow.parquet as pq

    pq.write_table(predictions(measures, ranks, uids), out / "predictions.parquet", row_group_size=ROW_GROUP)
