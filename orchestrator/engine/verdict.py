"""What is going on in a run, and why: its state, and of each stage whether and why it waits, is slow, or failed.

Everything is read from the run's own record (`state.json`, which its engine writes every few seconds, and
`plan.json`), so it is the same on any machine and costs two requests a run; only a failed stage's log is looked into.
Each verdict that can be acted upon says with which setting.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.engine.observe import FINAL
from orchestrator.engine.progress import Progress, duration
from orchestrator.store.logs import last_lines
from orchestrator.store.process import recorded
from orchestrator.store.runs import Run, engine_is_gone, silence_s

ACTIVE = ("waiting", "elsewhere", "running")
DATA_WAIT = 0.2
"""A training that waits longer than this share of its time for data is called slow."""
MEMORY_PERCENT = 90.0
ROOMY_PERCENT = 60.0
"""Of a machine's memory in use: there is room for larger micro-batches."""
NOT_BEGUN_S = 20.0
"""A stage that was handed out and shows no event for so long waits for its place."""
SILENT_S = 60.0
"""Workers write an event every few seconds."""
LOG_LINES = 10
STARTING_S = 120.0
"""From the record of a run to its first state."""
REQUESTS = 32
"""Requests for runs' states under way at once."""


@dataclass(frozen=True)
class StageView:
    """One stage as a person wants to see it. `verdicts` are sentences; `log` the last lines of a failed one's."""

    name: str
    kind: str
    state: str
    share: float | None
    done: float
    total: float | None
    unit: str
    rate: float | None
    left_s: float | None
    samples_per_s: float | None
    loss: float | None
    started: float | None
    took_s: float | None
    attempts: int
    preemptions: int
    crashes: int
    verdicts: tuple[str, ...] = ()
    log: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunView:
    """One run as a person wants to see it; `stages` only where it was asked for."""

    run: str
    recipe: str
    state: str
    """starting | running | interrupted (its engine is gone) | failed | stopped | skipped | done"""
    done: int
    total: int
    now: tuple[str, ...]
    """What is running, each with how far it is."""
    left_s: float | None
    samples_per_s: float | None
    started: float
    took_s: float | None
    why: str
    again: str
    """The command that goes on with it; "" where there is nothing to go on with."""
    stages: tuple[StageView, ...] = field(default=())


def overview(runs: Iterable[Run], now: float | None = None) -> list[RunView]:
    """Every run in a line; their states are asked for side by side."""
    with ThreadPoolExecutor(REQUESTS) as pool:
        return list(pool.map(lambda run: _run_view(run, run.state(), None, now), runs))


def examine(run: Run, now: float | None = None) -> RunView:
    """One run with its stages and a verdict on each."""
    state, plan = run.state(), run.plan()
    return _run_view(run, state, _stages(run, state, plan, now or time.time()), now)


def _run_view(run: Run, state: Mapping[str, Any], stages: tuple[StageView, ...] | None, now: float | None) -> RunView:
    moment = time.time() if now is None else now
    found = state.get("stages", {})
    word = run_state(run, state, moment)
    views = [_stage_view(name, stage, moment) for name, stage in found.items()]
    running = [view for view in views if view.state == "running" and word == "running"]
    finished = [stage["finished"] for stage in found.values() if stage["finished"]]
    over = state.get("t") or max(finished, default=None) if word in ("interrupted", "starting") else None
    end = moment if word == "running" else over or max(finished, default=None)
    return RunView(
        run=run.id,
        recipe=run.name,
        state=word,
        done=sum(view.state in ("done", "cached") for view in views),
        total=len(views),
        now=tuple(_progress_of(view) for view in running),
        left_s=max((view.left_s for view in running if view.left_s is not None), default=None),
        samples_per_s=sum(view.samples_per_s or 0.0 for view in running) or None,
        started=run.started,
        took_s=None if end is None else max(0.0, end - run.started),
        why=_why(run, state, word, moment),
        again=again(run) if word in ("interrupted", "failed", "stopped") else "",
        stages=stages or (),
    )


def run_state(run: Run, state: Mapping[str, Any], now: float) -> str:
    """One word for a run."""
    states = {stage["state"] for stage in state.get("stages", {}).values()}
    if states & set(ACTIVE):
        return "interrupted" if engine_is_gone(state, now) else "running"
    for word in ("failed", "stopped", "skipped"):
        if word in states:
            return word
    if states:
        return "done"
    return "starting" if now - run.started < STARTING_S else "interrupted"


def again(run: Run) -> str:
    """The command that submits the same again, as it was typed, from wherever this is read."""
    plan = run.plan()
    words = list(plan.get("again", ()))
    if not words:
        return ""
    recipe = Path(plan["directory"]) / words[0]
    words[0] = words[0] if Path.cwd() == Path(plan["directory"]) else str(recipe)
    return f"orch submit {shlex.join([*words, '--store', run.store.url])}"


def _why(run: Run, state: Mapping[str, Any], word: str, now: float) -> str:
    """The one thing to know of a run, for its line in the table."""
    if word == "interrupted":
        return _gone(state, now)
    stages = state.get("stages", {})
    for wanted in ("failed", "stopped", "elsewhere", "waiting", "running"):
        for name, stage in stages.items():
            if stage["state"] == wanted and stage["reason"]:
                return f"{name}: {stage['reason']}"
    for name, stage in stages.items():
        slow = _slow(Progress.from_record(stage.get("progress", {})), {}) if stage["state"] == "running" else []
        if slow:
            return f"{name}: {slow[0]}"
    return ""


def _gone(state: Mapping[str, Any], now: float) -> str:
    """Why a run is called interrupted."""
    engine = recorded(state)
    if engine is None:
        return "it ended before it had begun, or its record is lost"
    who = f"process {engine.pid} on {engine.host}"
    if engine.alive() is False:
        return f"its engine ({who}) has ended"
    return f"no sign of life from its engine ({who}) for {duration(silence_s(state, now))}"


def _stages(run: Run, state: Mapping[str, Any], plan: Mapping[str, Any], now: float) -> tuple[StageView, ...]:
    found = state.get("stages", {})
    views = []
    for name, stage in found.items():
        verdicts = _verdicts(name, stage, found, plan["stages"], engine_is_gone(state, now), state.get("t", now))
        failed = stage["state"] == "failed" and stage["fingerprint"]
        log = last_lines(run.store.storage, stage["fingerprint"], LOG_LINES) if failed else []
        views.append(_stage_view(name, stage, now, tuple(verdicts), tuple(log)))
    return tuple(views)


def _stage_view(
    name: str, stage: Mapping[str, Any], now: float, verdicts: tuple[str, ...] = (), log: tuple[str, ...] = ()
) -> StageView:
    progress = Progress.from_record(stage.get("progress", {}))
    end = stage["finished"] or (now if stage["state"] == "running" else None)
    began = stage["started"]
    running = stage["state"] in ("running", "elsewhere")
    return StageView(
        name=name,
        kind=stage["kind"],
        state=stage["state"],
        share=1.0 if stage["state"] in ("done", "cached") else progress.share,
        done=progress.done,
        total=progress.total,
        unit=progress.unit,
        rate=progress.rate,
        left_s=progress.left_s if running else None,
        samples_per_s=progress.samples_per_s,
        loss=progress.loss,
        started=began,
        took_s=None if began is None or end is None else end - began,
        attempts=stage.get("attempts", 0),
        preemptions=stage.get("preemptions", 0),
        crashes=stage.get("crashes", 0),
        verdicts=verdicts,
        log=log,
    )


def _verdicts(
    name: str,
    stage: Mapping[str, Any],
    stages: Mapping[str, Mapping[str, Any]],
    plan: Mapping[str, Mapping[str, Any]],
    gone: bool,
    told: float,
) -> list[str]:
    """What is to be said of a stage, the most important first. `told`: when the engine wrote all this."""
    said = [f"{stage['reason']}; {stage['remedy']}" if stage["remedy"] else stage["reason"]] if stage["reason"] else []
    planned, progress = plan.get(name, {}), Progress.from_record(stage.get("progress", {}))
    if gone and stage["state"] in ACTIVE:
        return [*said, *_attempts(stage)]
    if stage["state"] == "waiting" and not said:
        said = [_waits(name, stages, plan)]
    elif stage["state"] == "running":
        silent_s = told - progress.t if progress.t is not None else 0.0
        if not _begun(stage):
            if told - stage["started"] > NOT_BEGUN_S:
                said.append(
                    f"its worker has not begun: no node has room for {_asked(planned)} yet, or one is being prepared"
                )
        elif silent_s > SILENT_S:
            said.append(f"no event from its worker for {duration(silent_s)}")
        said += _slow(progress, planned)
    if progress.warning and stage["state"] == "running":
        said.append(f"it said: {progress.warning}")
    return said + _attempts(stage)


def _begun(stage: Mapping[str, Any]) -> bool:
    """Whether this attempt has written an event."""
    generation = stage.get("generation")
    return generation is None or stage.get("position", (0, 0))[0] >= generation


def _waits(name: str, stages: Mapping[str, Mapping[str, Any]], plan: Mapping[str, Mapping[str, Any]]) -> str:
    """For what a stage that nobody holds up waits: its inputs, or room."""
    needs = [need for need in plan.get(name, {}).get("needs", ()) if stages[need]["state"] not in ("done", "cached")]
    if needs:
        left = [Progress.from_record(stages[need].get("progress", {})).left_s for need in needs]
        known = max((seconds for seconds in left if seconds is not None), default=None)
        return f"waits for {', '.join(needs)}" + ("" if known is None else f" ({duration(known)} left)")
    others = [
        f"{other} ({_asked(plan.get(other, {}))})" for other, stage in stages.items() if stage["state"] == "running"
    ]
    return f"waits for {_asked(plan.get(name, {}))}" + (f", taken by {', '.join(others)}" if others else "")


def _asked(planned: Mapping[str, Any]) -> str:
    cpus, gpus = planned.get("cpus", 1), planned.get("gpus", 0)
    words = [f"{cpus:g} CPU{'' if cpus == 1 else 's'}"] + ([f"{gpus:g} GPU{'' if gpus == 1 else 's'}"] if gpus else [])
    return " and ".join(words)


def _slow(progress: Progress, planned: Mapping[str, Any]) -> list[str]:
    """Why a stage is slower than it could be, and which setting to change (none of these changes its result)."""
    said = []
    share, memory = progress.data_wait_share or 0.0, progress.memory_percent
    if share > DATA_WAIT:
        now = f" (now {planned['cpus']:g})" if "cpus" in planned else ""
        said.append(
            f"{share:.0%} of the time waits for data: raise resources.cpus{now}, keep the shards on a disk near the "
            "workers, or make shards of smaller images"
        )
    if memory is not None and memory > MEMORY_PERCENT:
        said.append(f"{memory:.0f}% of the machine's memory is in use: lower micro_batch, or run fewer stages at once")
    batch, micro = planned.get("batch"), planned.get("micro_batch")
    cut = batch and isinstance(micro, int) and micro < batch // planned.get("workers", 1)
    if cut and not planned.get("gpus") and memory is not None and memory < ROOMY_PERCENT:
        said.append(
            f"a batch of {batch} goes in micro-batches of {micro}, each forward pass twice, though {memory:.0f}% of "
            "the memory is in use: raise micro_batch"
        )
    return said


def _attempts(stage: Mapping[str, Any]) -> list[str]:
    """How often a stage was begun in this run, and why."""
    counts = [("preempted", stage.get("preemptions", 0)), ("lost its worker", stage.get("crashes", 0))]
    parts = [f"{word} {'once' if count == 1 else f'{count} times'}" for word, count in counts if count]
    return [f"attempt {stage['attempts']}: {', '.join(parts)}"] if parts else []


def _progress_of(view: StageView) -> str:
    parts = [view.name]
    if view.share is not None:
        parts.append(f"{view.share:.0%}")
    if view.left_s is not None:
        parts.append(f"{duration(view.left_s)} left")
    return " ".join(parts)


def is_over(view: RunView) -> bool:
    """Whether nothing will change any more without somebody submitting again."""
    return view.state not in ("starting", "running")


def is_final(stage: Mapping[str, Any]) -> bool:
    """Whether a stage of a run's state is final."""
    return stage["state"] in FINAL
