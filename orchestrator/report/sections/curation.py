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
from orchestrator.report.sections.data import splits, thumbnails
from orchestrator.store.artifacts import Handle, Manifest

EXAMPLES = 8
"""Pictures of each reason."""
LARGEST = 20_000_000
"""Rows of a data set in which examples are still looked up by id."""


def show(run: RunRecord, stages: list[StageRecord]) -> Iterator[Block]:
    """Each curation's funnel and examples, then the bad samples of all stages."""
    for stage in stages:
        manifest, handle = stage.manifest, stage.handle
        if manifest is None or handle is None or "report.json" not in manifest.files or stage.kind != "curate":
            continue
        report = json.loads(handle.read("report.json"))
        yield Table(
            ("operator", "options", "kept", "dropped, by reason"),
            [_row(step) for step in report["steps"]],
            title=f"{stage.name}: {words.count(report['kept'])} of {words.count(report['in'])} samples kept",
            numbers=False,
        )
        yield Facts(splits(manifest.metrics, report["kept"]))
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
    options = ", ".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in step["options"].items())
    reasons = "; ".join(f"{words.count(number)} {reason}" for reason, number in step["dropped"].items())
    kept = Cell(words.count(step["kept"]), f"{words.percent(share)} of {words.count(step['in'])}", share)
    return [step["operator"], options, kept, reasons or "none"]


def _examples(run: RunRecord, manifest: Manifest, steps: list[Mapping[str, Any]]) -> Iterator[Block]:
    """Pictures of dropped samples, from the data set that the stage read."""
    wanted = {
        (reason, step["dropped"].get(reason)): uids[:EXAMPLES]
        for step in steps
        for reason, uids in step.get("examples", {}).items()
    }
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
