"""Runs a `benchmark` stage: one model after another answers each set's questions, then answers become figures.

Files of a Report:

    benchmark.json            the tasks (size, classes, main figure, digest), and each model's figures, by place
    eval_results.<i>.jsonl    the figures of model i in DataComp's shape, a line a task, for its own scripts

One model, and one set's features, are in memory at a time. Declared files hold no names of models and no timings:
those are in the manifest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from orchestrator.data.benchmark import BenchmarkSet
from orchestrator.errors import Cancelled, DataError
from orchestrator.evaluation import metrics
from orchestrator.evaluation.benchmark import Answers, Questions, questions
from orchestrator.evaluation.benchmark_figures import aggregates, draws, figures, main_figure
from orchestrator.evaluation.datacomp import AGGREGATES, Task
from orchestrator.evaluation.encode import BadImages, encode
from orchestrator.models.count import count
from orchestrator.stages.base import Outcome, StageContext
from orchestrator.stages.benchmark.config import BenchmarkStage
from orchestrator.stages.models import distinct, load_input

FILE = "benchmark.json"


@dataclass(frozen=True)
class Asked:
    """A task, its set, the set's questions, and the figure that stands for it."""

    task: Task
    data: BenchmarkSet
    questions: Questions
    main: str


def run(ctx: StageContext) -> Outcome:
    """Score the models; a stop request is obeyed between batches and leaves nothing behind.

    DataError if a set is not what was read, has images that cannot be decoded, or does not hold what its task asks.
    """
    config = ctx.config
    assert isinstance(config, BenchmarkStage)
    torch.set_num_threads(ctx.resources.threads)
    asked = _asked(ctx, config)
    missing = [task.key for task in config.wanted if task not in [one.task for one in asked]]
    for line in _remarks(config, asked, missing):
        ctx.events.emit("message", level="warning", text=line)
    names = distinct([ctx.input_names[f"models.{place}"] for place in range(len(config.models))])
    try:
        found = list(_answered(ctx, config, asked))
    except Cancelled as stop:
        return Outcome(stopped=stop.message)
    record = _record(config, asked, missing, found)
    (ctx.out / FILE).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    for place, model in enumerate(record["models"]):
        lines = [json.dumps(line, allow_nan=False) + "\n" for line in _as_datacomp(record["tasks"], model)]
        (ctx.out / f"eval_results.{place}.jsonl").write_text("".join(lines), encoding="utf-8")
    speeds = [one.speed for one in found]
    return Outcome(
        metrics={
            f"{name}/{figure}": value
            for name, model, speed in zip(names, record["models"], speeds)
            for figure, value in (_flat(record["tasks"], model) | speed).items()
        },
        summary={"models": names, "source": config.path, "missing": missing, "speeds": speeds},
    )


def _asked(ctx: StageContext, config: BenchmarkStage) -> list[Asked]:
    """The tasks whose sets were read before the stage began, with what they ask."""
    asked = []
    for task in config.wanted:
        place = next((ctx.sources[source] for source in config.candidates(task) if source in ctx.sources), None)
        if place is not None:
            data = BenchmarkSet(place, ctx.store)
            ask = questions(data, config.max_samples)
            asked.append(Asked(task, data, ask, main_figure(data, task.metric)))
    return asked


def _remarks(config: BenchmarkStage, asked: Sequence[Asked], missing: Sequence[str]) -> Iterator[str]:
    """What makes these figures other than the benchmark's."""
    if not asked:
        yield f"no evaluation set is in '{config.path}': nothing is scored"
    if missing:
        yield f"{len(missing)} of {len(config.wanted)} evaluation sets are not there: {', '.join(missing)}"
    for one in asked:
        size = _size(one.data)
        if one.task.size is not None and size != one.task.size:
            yield f"{one.task.key} has {size:,} samples here, {one.task.size:,} in DataComp's list"


def _size(data: BenchmarkSet) -> int:
    return len(data.associations) if data.kind == "associations" else len(data)


@dataclass(frozen=True)
class Answered:
    """One model: its answers to each set, its sizes, and the measured speed of its forward passes."""

    answers: Sequence[Answers]
    parameters: Mapping[str, int]
    speed: dict[str, float]


def _answered(ctx: StageContext, config: BenchmarkStage, asked: Sequence[Asked]) -> Iterator[Answered]:
    """Each model's answers, one model after another; raises Cancelled when asked to stop."""
    device = torch.device("cuda" if ctx.resources.gpus else "cpu")
    work = [(one, sorted(set(one.questions.texts))) for one in asked]
    total, done = len(config.models) * sum(len(one.questions.rows) + len(texts) for one, texts in work), 0

    def tick(number: int) -> None:
        nonlocal done
        done += number
        ctx.events.emit("progress", done=done, total=total, unit="samples")
        if reason := ctx.should_stop():
            raise Cancelled(reason)

    for place in range(len(config.models)):
        key = f"models.{place}"
        model, preprocess, tokenizer = load_input(ctx.inputs, ctx.input_names, key, device)
        answers, images, seconds = list[Answers](), 0, 0.0
        for one, texts in work:
            ctx.events.emit("phase", name=f"{ctx.input_names[key]}: {one.task.name}")
            try:
                encoded = encode(
                    model,
                    preprocess,
                    tokenizer,
                    one.data,
                    one.questions.rows.tolist(),
                    texts,
                    batch=config.batch,
                    threads=ctx.resources.threads,
                    tick=tick,
                )
            except BadImages as bad:
                raise _undecodable(one, bad) from None
            answers.append(one.questions.answer(encoded))
            images += len(one.questions.rows)
            seconds += len(one.questions.rows) / encoded.images_per_s
        sizes = count(model)
        parameters = {"parameters": sizes.total, "parameters_without_token_table": sizes.without_token_table}
        yield Answered(answers, parameters, {"images_per_s": images / seconds} if seconds else {})


def _undecodable(one: Asked, bad: BadImages) -> DataError:
    row, why = next(iter(bad.rows.items()))
    return DataError(
        f"{len(bad.rows):,} images of benchmark set '{one.data.name}' cannot be decoded, "
        f"the first is '{one.data.keys[row]}' ({why.message})",
        "without them the figure would be another task's: fetch the set again",
    )


def _record(
    config: BenchmarkStage, asked: Sequence[Asked], missing: Sequence[str], found: Sequence[Answered]
) -> dict[str, Any]:
    """All that is kept: tasks, figures, intervals and means, as JSON values."""
    models: list[dict[str, Any]] = [{**one.parameters, "tasks": {}, "means": {}} for one in found]
    drawn = {}
    for number, one in enumerate(asked):
        answers = [model.answers[number] for model in found]
        drawn[one.task.key] = draws(answers, one.main, config.bootstrap, config.seed, one.task.key)
        for place, model in enumerate(models):
            own = figures(answers[place], one.main)
            model["tasks"][one.task.key] = {"figures": own} | _interval(own[one.main], drawn[one.task.key][:, place])
    have = [one.task.key for one in asked if all(m["tasks"][one.task.key]["value"] is not None for m in models)]
    means = dict(aggregates(AGGREGATES, have))
    for place, model in enumerate(models):
        for name, keys in means.items():
            value = float(np.mean([model["tasks"][key]["value"] for key in keys]))
            model["means"][name] = _interval(value, np.mean([drawn[key][:, place] for key in keys], axis=0))
    return {
        "format": 1,
        "intervals": {"level": metrics.LEVEL, "samples": config.bootstrap, "seed": config.seed},
        "tasks": [_describe(one, config.max_samples) for one in asked],
        "missing": list(missing),
        "means": {name: list(keys) for name, keys in means.items()},
        "models": models,
        "compared": [
            {"model": place, "against": 0, "means": _differences(models, means, drawn, place)}
            for place in range(1, len(models))
        ],
    }


def _interval(value: float | None, drawn: np.ndarray) -> dict[str, float | None]:
    """A figure with the ends of its interval; draws in which it has no meaning are left out."""
    drawn = drawn[np.isfinite(drawn)]
    low, high = metrics.interval(drawn) if value is not None and len(drawn) else (None, None)
    return {"value": value, "low": low, "high": high}


def _differences(
    models: Sequence[Mapping[str, Any]],
    means: Mapping[str, Sequence[str]],
    drawn: Mapping[str, np.ndarray],
    place: int,
) -> dict[str, dict[str, float | None]]:
    """Each mean of a model less the first model's, with paired intervals."""
    found = {}
    for name, keys in means.items():
        pair = np.mean([drawn[key][:, [place, 0]] for key in keys], axis=0)
        value = models[place]["means"][name]["value"] - models[0]["means"][name]["value"]
        found[name] = _interval(value, pair[:, 0] - pair[:, 1])
    return found


def _describe(one: Asked, limit: int | None) -> dict[str, Any]:
    """What a table needs to know of a task."""
    size = _size(one.data)
    return {
        "key": one.task.key,
        "name": one.task.name,
        "group": one.task.group,
        "metric": one.main,
        "chance": one.task.chance,
        "size": size if limit is None else min(limit, size),
        "expected_size": one.task.size,
        "classes": len(one.data.classes) or None,
        "templates": len(one.data.templates) or None,
        "digest": one.data.digest,
    }


def _as_datacomp(tasks: Sequence[Mapping[str, Any]], model: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Lines of DataComp's eval_results.jsonl."""
    for task in tasks:
        own = model["tasks"][task["key"]]
        yield {"key": task["key"], "dataset": task["name"], "metrics": {**own["figures"], "main_metric": own["value"]}}


def _flat(tasks: Sequence[Mapping[str, Any]], model: Mapping[str, Any]) -> dict[str, float]:
    """A model's means, main figures and sizes by flat names: `average_of_38`, `vtab/pets.mean_per_class_recall`."""
    main = {f"{task['key']}.{task['metric'].replace('@', '_at_')}": model["tasks"][task["key"]] for task in tasks}
    found = {name: one["value"] for name, one in (model["means"] | main).items() if one["value"] is not None}
    return found | {name: float(value) for name, value in model.items() if name.startswith("parameters")}
