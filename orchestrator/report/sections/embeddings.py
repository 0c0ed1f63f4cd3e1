"""Embeddings: whose features of what, how many, and how fast they were made."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.report import words
from orchestrator.report.blocks import Block, Table
from orchestrator.report.record import RunRecord, StageRecord

COUNTS = ("samples", "image_features", "text_features", "image_codes")


def show(run: RunRecord, stages: list[StageRecord]) -> Iterator[Block]:
    """One row a stage."""
    rows = []
    for stage in stages:
        manifest = stage.manifest
        if manifest is None:
            continue
        sources = [run.name_of(use["fingerprint"], use["name"]) for use in manifest.inputs.values()]
        counts = [manifest.metrics.get(name, 0) for name in COUNTS]
        speed = manifest.summary.get("encoded_per_s")
        rows.append(
            [
                stage.name,
                words.some(sources),
                *map(words.count, counts),
                "" if speed is None else words.count(speed),
                words.size(manifest.size),
            ]
        )
    columns = ("stage", "from", *(name.replace("_", " ") for name in COUNTS), "a second", "size")
    if rows:
        yield Table(columns, rows)
