"""Runs the `curate` stage: each operator judges what the ones before it kept; the funnel is written to report.json."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np

from orchestrator.curation import OPERATORS
from orchestrator.curation.operator import OperatorConfig
from orchestrator.data.dataset import Dataset, write_selection
from orchestrator.errors import DataError
from orchestrator.stages.base import Outcome, StageContext
from orchestrator.stages.curate.config import CurateStage

EXAMPLES = 10
"""Sample ids kept in the report for each reason: the first in uid order."""


def run(ctx: StageContext) -> Outcome:
    """Write the selection and the report; DataError if nothing is left."""
    config = ctx.config
    assert isinstance(config, CurateStage)
    upstream = ctx.inputs["data"]
    before = data = Dataset.open(upstream)
    funnel = []
    for operator in config.steps:
        data, facts = apply(operator, data)
        funnel.append(facts)
        ctx.events.emit("progress", done=len(funnel), total=len(config.steps), unit="steps")
        if not len(data):
            raise DataError(
                f"'{facts['operator']}' left no sample of {facts['in']}",
                "loosen its options: " + json.dumps(facts["dropped"]),
            )
    write_selection(ctx.out, upstream, data.rows)
    report = {"in": len(before), "kept": len(data), "steps": funnel}
    (ctx.out / "report.json").write_text(json.dumps(report, indent=1, sort_keys=True), encoding="utf-8")
    metrics = {"samples": float(len(data)), "dropped": float(len(before) - len(data))}
    if "split" in data.columns:
        counts = Counter(data.column("split").tolist())
        metrics |= {f"samples_{split}": float(count) for split, count in sorted(counts.items())}
    return Outcome(metrics=metrics, summary=report)


def apply(operator: OperatorConfig, data: Dataset) -> tuple[Dataset, dict[str, Any]]:
    """What one operator keeps, and its line of the funnel: in, kept, dropped by reason, examples."""
    reasons = operator.judge({name: data.column(name) for name in operator.columns})
    dropped = np.flatnonzero(reasons != "")
    uids = data.uids
    examples: dict[str, list[str]] = {}
    for uid, reason in sorted((uids[row], reasons[row]) for row in dropped.tolist()):
        if len(examples.setdefault(reason, [])) < EXAMPLES:
            examples[reason].append(uid)
    kept = data.take(np.flatnonzero(reasons == ""))
    counts = Counter(reasons[dropped].tolist())
    return kept, {
        "operator": OPERATORS.name_of(operator),
        "options": operator.model_dump(mode="json"),
        "in": len(data),
        "kept": len(kept),
        "dropped": dict(sorted(counts.items())),
        "examples": examples,
    }
