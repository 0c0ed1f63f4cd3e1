"""Runs the `curate` stage: stretch by stretch over the blocks, then the artifact.

What is finished of a block is kept in the store at once, so a stage that is killed goes on where it was, less the
blocks in flight. The result is the same for any number of workers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from orchestrator.curation import OPERATORS
from orchestrator.curation.operator import Arrays, FittedOperator
from orchestrator.errors import DataError, UserError
from orchestrator.stages.base import Outcome, StageContext
from orchestrator.stages.blocks import Pass, do
from orchestrator.stages.curate.assemble import Assembly
from orchestrator.stages.curate.config import CurateStage
from orchestrator.stages.curate.groups import deal, deal_back
from orchestrator.stages.curate.passes import Curation, load_arrays, open_stretch, save_arrays, stretches
from orchestrator.stages.curate.tools import StageTools
from orchestrator.store.parts import Parts


def run(ctx: StageContext) -> Outcome:
    """Write the selection, the columns and the report.

    UserError if an operator needs a column that is not there, DataError if nothing is left.
    """
    config = ctx.config
    assert isinstance(config, CurateStage)
    curation = Curation(
        names=tuple(OPERATORS.name_of(step) for step in config.steps),
        steps=tuple(config.steps),
        data=ctx.inputs["data"],
        split=config.split,
        tools=StageTools(ctx.inputs, ctx.input_names, ctx.sources, ctx.store, 0, bool(ctx.resources.gpus)),
        parts=Parts(ctx.store.storage, ctx.fingerprint),
    )
    _check_columns(curation)
    curation.dataset.check_shards()
    started, cut = time.monotonic(), stretches(config.steps)
    progress = _Progress(ctx, len(cut) * len(curation.blocks))
    for stretch in cut:
        one = Pass(f"state-{stretch.number}", range(len(curation.blocks)), partial(open_stretch, curation, stretch))
        reason = do(one, curation.parts, ctx.resources, ctx.should_stop, progress)
        if reason is None and stretch.last is not None:
            reason = _bring_together(ctx, curation, stretch.last)
        if reason is not None:
            return Outcome(stopped=reason)
        progress.next()
    assembly = Assembly(curation, cut[-1].number, ctx.out)
    assembly.write()
    report = assembly.report()
    if not report["kept"]:
        empty = next(step for step in report["steps"] if not step["kept"])
        raise DataError(
            f"'{empty['operator']}' left no sample of {empty['in']}", f"loosen its options: {empty['dropped']}"
        )
    metrics = {"samples": float(assembly.selected), "dropped": float(max(0, assembly.before - report["kept"]))}
    metrics |= {f"kept/{n}-{step['operator']}": float(step["kept"]) for n, step in enumerate(report["steps"])}
    metrics |= {f"samples_{split}": float(count) for split, count in sorted(assembly.splits.items())}
    seconds = {
        f"{place} {name}": round(step.seconds, 3)
        for place, (name, step) in enumerate(zip(curation.names, assembly.steps))
    }
    needs = [place for place in ctx.sources.values() if place is not None]
    facts = {"blocks": len(curation.blocks), "workers": ctx.resources.workers, "seconds": time.monotonic() - started}
    return Outcome(metrics=metrics, summary={**report, **facts, "operator_seconds": seconds, "needs": needs})


def _bring_together(ctx: StageContext, curation: Curation, place: int) -> str | None:
    """Fit, or compare, what was seen of all blocks; the reason to stop, if there is one."""
    operator, parts = curation.steps[place], curation.parts
    if isinstance(operator, FittedOperator):
        if parts.find(f"fitted-{place}", 0) is None:
            fitted = operator.fit(_seen(curation, place), curation.tools_of(place))
            parts.put(f"fitted-{place}", 0, save_arrays(fitted))
        return ctx.should_stop()
    compare = deal(curation, place, ctx.scratch)
    if (reason := do(compare, parts, ctx.resources, ctx.should_stop)) is not None:
        return reason
    deal_back(curation, place, len(compare.blocks), ctx.scratch)
    return ctx.should_stop()


def _seen(curation: Curation, place: int) -> Iterator[Arrays]:
    for block in range(len(curation.blocks)):
        yield load_arrays(curation.parts.get(f"seen-{place}", block))


def _check_columns(curation: Curation) -> None:
    """UserError naming the operator whose column is neither in the data nor made before it."""
    there = set(curation.dataset.columns) | {"captions"}
    for place, (name, operator) in enumerate(zip(curation.names, curation.steps)):
        missing = [column for column in operator.reads() if column not in there]
        if missing:
            raise UserError(
                f"operator {name} (steps.{place}) needs the column '{missing[0]}', which the data do not have",
                f"an operator before it may make it; there are: {', '.join(sorted(there))}",
            )
        there |= set(operator.adds())


class _Progress:
    """Blocks done over all stretches, as events."""

    def __init__(self, ctx: StageContext, total: int) -> None:
        self._events, self._total, self._before, self._blocks = ctx.events, total, 0, 0

    def __call__(self, done: int, blocks: int) -> None:
        self._blocks = blocks
        self._events.emit("progress", done=self._before + done, total=self._total, unit="blocks")

    def next(self) -> None:
        """The next stretch begins."""
        self._before += self._blocks
