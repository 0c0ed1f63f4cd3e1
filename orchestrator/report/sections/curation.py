"""What was dropped and why: the funnel of curation with examples of each reason, and the bad samples that any stage
left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.errors import OrchError
from orchestrator.report import words
from orchestrator.report.blocks import Block, Cell, Facts, Gallery, Table, Text, Thumb
from orchestrator.report.record import RunRecord, StageRecord
from orchestrator.report.sections.data import contact_sheet, splits, thumbnails
from orchestrator.store.artifacts import Handle, Manifest

EXAMPLES = 8
"""Pictures of each reason."""
REASONS = 12
"""Reasons, the most frequent ones, that are named of an operator and shown of a stage."""
KEPT = 16
"""Pictures of what is left."""
LARGEST = 20_000_000
"""Rows of a data set in which examples are still looked up by id."""


def show(run: RunRecord, stages: list[StageRecord]) -> Iterator[Block]:
    """Each curation's funnel and examples, then the bad samples of all stages."""
    for stage in stages:
        manifest, handle = stage.manifest, stage.handle
        if manifest is None or handle is None or "report.json" not in manifest.files or stage.kind != "curate":
            continue
        report = json.loads(handle.read("report.json"))
        apart = f"; {words.count(report['apart'])} of other splits stay as they are" if report.get("apart") else ""
        yield Table(
            ("operator", "options", "kept", "dropped, by reason", "noted"),
            [_row(step) for step in report["steps"]],
            title=f"{stage.name}: {words.count(report['kept'])} of {words.count(report['in'])} samples kept{apart}",
            numbers=False,
        )
        yield Facts(splits(manifest.metrics, manifest.metrics["samples"]))
        yield from _left(handle)
        yield from _examples(run, manifest, report["steps"])
    bad = [row for stage in stages if stage.manifest is not None for row in _bad(stage.name, stage.manifest.summary)]
    if bad:
        yield Table(("stage", "reason", "samples", "for instance"), bad, title="Bad samples left out", numbers=False)


def _bad(name: str, summary: Mapping[str, Any]) -> Iterator[list[str]]:
    """What a stage could not use: unreadable when it was indexed, or when it was read."""
    for found in (summary.get("dropped", {}), summary.get("bad_samples", {})):
        for reason, number in found.get("counts", {}).items():
            yield [name, reason, words.count(number), "; ".join(found["examples"].get(reason, ())[:2])]


def _row(step: Mapping[str, Any]) -> list[Cell | str]:
    share = step["kept"] / step["in"] if step["in"] else 0.0
    options = ", ".join(
        f"{name}: {json.dumps(value, ensure_ascii=False)}"
        for name, value in step["options"].items()
        if value is not None
    )
    counts = sorted(step["dropped"].items(), key=lambda item: -item[1])
    reasons = [f"{words.count(number)} {reason.removeprefix(step['operator'] + ': ')}" for reason, number in counts]
    more = [f"and {len(reasons) - REASONS} further reasons"] if len(reasons) > REASONS else []
    noted = "; ".join(f"{name}: {words.figure(value)}" for name, value in step.get("counts", {}).items())
    kept = Cell(words.count(step["kept"]), f"{words.percent(share)} of {words.count(step['in'])}", share)
    return [step["operator"], options, kept, "; ".join([*reasons[:REASONS], *more]) or "none", noted]


def _left(handle: Handle) -> Iterator[Block]:
    """Some of the samples that are left."""
    from orchestrator.data.dataset import Dataset

    try:
        dataset = Dataset.open(handle)
        if len(dataset) <= LARGEST:
            yield contact_sheet(dataset, KEPT)
    except (OrchError, FileNotFoundError) as error:
        yield Text(f"What is left cannot be shown: {error}", warning=True)


def _examples(run: RunRecord, manifest: Manifest, steps: list[Mapping[str, Any]]) -> Iterator[Block]:
    """Pictures of dropped samples, from the data set that the stage read."""
    wanted = {
        (reason, step["dropped"].get(reason)): uids[:EXAMPLES]
        for step in steps
        for reason, uids in step.get("examples", {}).items()
    }
    frequent = sorted(wanted, key=lambda item: -(item[1] or 0))[:REASONS]
    wanted = {item: uids for item, uids in wanted.items() if item in frequent}
    if not wanted:
        return
    use = manifest.inputs["data"]
    upstream = run.store.find(use["kind"], use["fingerprint"])
    try:
        if upstream is None:
            raise OrchError(f"the data set '{use['name']}' is no longer in the store")
        found = _by_uid(Handle(run.store, upstream), sorted({uid for uids in wanted.values() for uid in uids}))
    except (OrchError, FileNotFoundError) as error:
        yield Text(f"What was dropped cannot be shown: {error}", warning=True)
        return
    for (reason, number), uids in wanted.items():
        thumbs = [found[uid] for uid in uids if uid in found]
        shown = f"{len(thumbs)} of {words.count(number)}." if number and number > len(thumbs) else ""
        yield Gallery(thumbs, title=reason, note=shown)


def _by_uid(handle: Handle, uids: list[str]) -> dict[str, Thumb]:
    import numpy as np

    from orchestrator.data.dataset import IDENTITY, Dataset

    dataset = Dataset.open(handle)
    if len(dataset) > LARGEST:
        raise OrchError(f"it has {len(dataset):,} samples, too many to look some up")
    wanted = np.frombuffer(bytes.fromhex("".join(uids)), IDENTITY)
    rows = np.flatnonzero(np.isin(dataset.column("uid"), wanted)).tolist()
    names = dataset.take(rows).uids
    return {names[place]: thumb for place, thumb in enumerate(thumbnails(dataset, rows))}
