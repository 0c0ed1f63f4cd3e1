"""Training: what each model saw and how fast, and its curves over samples, all models of the run in one drawing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

from orchestrator.report import words
from orchestrator.report.blocks import Block, Fold, Plot, Plots, Table
from orchestrator.report.plots import Curve, Mark, curves
from orchestrator.report.record import RunRecord, StageRecord

MAIN = {
    "loss": "Loss",
    "learning_rate": "Learning rate",
    "samples_per_s": "Throughput, samples/s",
    "grad_norm": "Gradient norm",
    "data_wait_share": "Share of time waiting for data",
    "mfu": "Model-FLOPs utilisation",
}
"""Curves that are always shown, besides validation (`val/...`)."""
SHARES = ("data_wait_share", "mfu", "batch_top1")
FROM_ZERO = ("learning_rate", "samples_per_s", "tokens_per_s", "tflops_per_s", "memory_bytes", *SHARES)


def show(run: RunRecord, stages: list[StageRecord]) -> Iterator[Block]:
    """A table of the trainings, the main curves, and the others behind a fold."""
    rows = [_row(stage) for stage in stages if stage.manifest is not None]
    columns = ("training", "samples", "time", "samples/s", "waiting for data", "last loss", "parameters", "on")
    if rows:
        yield Table(columns, rows)
    drawn = [stage for stage in stages if stage.curves]
    names = list(dict.fromkeys(metric for stage in drawn for metric in stage.curves))
    main = [name for name in MAIN if name in names] + [name for name in names if name.startswith("val/")]
    if main:
        yield Plots([_plot(drawn, name) for name in main], note=_marks_note(drawn))
    terms = [name for name in names if name.startswith("loss_")]
    if any(len([term for term in terms if term in stage.curves]) > 1 for stage in drawn):
        yield Plots([_plot(drawn, name) for name in terms], title="Terms of the loss")
        main += terms
    others = [name for name in names if name not in main and name not in terms]
    if others:
        yield Fold("More curves", [Plots([_plot(drawn, name) for name in others])], beside=", ".join(others))


def _row(stage: StageRecord) -> list[str]:
    manifest = stage.manifest
    assert manifest is not None
    summary, metrics = manifest.summary, manifest.metrics
    speed, wait = over_all(stage.curves)
    speed, wait = speed or metrics.get("samples_per_s"), metrics.get("data_wait_share") if wait is None else wait
    epochs = summary.get("epochs")
    seen = words.count(summary["samples"]) if "samples" in summary else ""
    workers = summary.get("workers", 1)
    facts = [
        f"{summary.get('device', '')} {summary.get('precision', '')}".strip(),
        f"{workers} workers" if workers > 1 else "",
        f"resumed at {summary['resumed_at_samples']:,}" if "resumed_at_samples" in summary else "",
    ]
    return [
        stage.name,
        seen + (f" ({epochs:.3g} epochs)" if epochs else ""),
        words.duration(manifest.wall_s),
        "" if speed is None else words.count(speed),
        "" if wait is None else words.percent(wait),
        f"{metrics['loss']:.3g}" if "loss" in metrics else "",
        words.millions(metrics["parameters"]) if "parameters" in metrics else "",
        ", ".join(filter(None, facts)),
    ]


def over_all(curves: Mapping[str, list[tuple[int, float]]]) -> tuple[float | None, float | None]:
    """Samples a second and the share of time waiting for data over a whole training: what its reports say of their
    parts, each by the time it took; None where nothing was reported.
    """
    speeds, waits = curves.get("samples_per_s", []), dict(curves.get("data_wait_share", []))
    samples = waited_s = elapsed_s = 0.0
    for (before, _), (at, speed) in pairwise([(0, 0.0), *speeds]):
        if speed > 0:
            took_s = (at - before) / speed
            samples, elapsed_s = samples + at - before, elapsed_s + took_s
            waited_s += waits.get(at, 0.0) * took_s
    return (samples / elapsed_s, waited_s / elapsed_s) if elapsed_s else (None, None)


def _plot(stages: list[StageRecord], metric: str) -> Plot:
    series = [Curve(number, stage.curves[metric]) for number, stage in enumerate(stages) if metric in stage.curves]
    legend = [(number, stage.name) for number, stage in enumerate(stages) if metric in stage.curves]
    marks = [mark for number, stage in enumerate(stages) if metric in stage.curves for mark in _marks(number, stage)]
    svg = curves(series, "samples seen", marks, zero=metric in FROM_ZERO, percent=metric in SHARES)
    return Plot(MAIN.get(metric, metric), svg, legend)


def _marks(number: int, stage: StageRecord) -> list[Mark]:
    """Where it was resumed, and where its later phases began."""
    marks, samples, phases = [], 0, 0
    for event in stage.events:
        if event["type"] == "report":
            samples = event["samples"]
        elif event["type"] == "resumed":
            samples = event["samples"]
            marks.append(Mark(number, samples))
        elif event["type"] == "phase":
            phases += 1
            if phases > 1 and samples:
                marks.append(Mark(number, samples, dotted=True))
    return list(dict.fromkeys(marks))


def _marks_note(stages: list[StageRecord]) -> str:
    marks = [mark for number, stage in enumerate(stages) for mark in _marks(number, stage)]
    dashed, dotted = any(not mark.dotted for mark in marks), any(mark.dotted for mark in marks)
    said = ["Dashed: resumed from a checkpoint."] * dashed + ["Dotted: a phase begins."] * dotted
    return " ".join(said)
