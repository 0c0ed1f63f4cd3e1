"""Data: what a data set is, how it is split, and some of its samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from orchestrator.errors import OrchError
from orchestrator.report import words
from orchestrator.report.blocks import Block, Facts, Gallery, Text, Thumb
from orchestrator.report.pictures import small
from orchestrator.report.record import RunRecord, StageRecord

if TYPE_CHECKING:
    from orchestrator.data.dataset import Dataset

SAMPLES = 24
SPLIT = "samples_"
"""Beginning of the metrics that count samples by split."""


def show(run: RunRecord, stages: list[StageRecord]) -> Iterator[Block]:
    """Facts, splits and a contact sheet of each data set."""
    for stage in stages:
        manifest, handle = stage.manifest, stage.handle
        if manifest is None or handle is None:
            continue
        summary, total = manifest.summary, manifest.metrics.get("samples", 0)
        pairs = [
            ("source", str(summary.get("source", ""))),
            ("samples", words.count(total)),
            *splits(manifest.metrics, total),
            ("shards", str(summary.get("shards", ""))),
            ("content", manifest.content_digest[:16]),
        ]
        yield Facts([pair for pair in pairs if pair[1]], title=stage.name)
        try:
            from orchestrator.data.dataset import Dataset

            yield contact_sheet(Dataset.open(handle))
        except (OrchError, FileNotFoundError) as error:
            yield Text(f"Its samples cannot be shown: {error}", warning=True)


def splits(metrics: Mapping[str, float], total: float) -> list[tuple[str, str]]:
    """How many samples each split has, as facts."""
    counts = {name.removeprefix(SPLIT): value for name, value in metrics.items() if name.startswith(SPLIT)}
    return [
        (f"split {name}", f"{words.count(number)} ({words.percent(number / total)})")
        for name, number in sorted(counts.items(), key=lambda item: -item[1])
        if number and total
    ]


def contact_sheet(dataset: Dataset, most: int = SAMPLES) -> Gallery:
    """Samples at even distances, as they are stored, with their captions and splits."""
    number = min(most, len(dataset))
    rows = [place * len(dataset) // number for place in range(number)]
    thumbs = thumbnails(dataset, rows)
    return Gallery(
        thumbs, note=f"{number} of {words.count(len(dataset))}, at even distances in the order of the shards."
    )


def thumbnails(dataset: Dataset, rows: list[int]) -> list[Thumb]:
    """Samples by position in the selection, with their first caption and, as a tag, their split."""
    some = dataset.take(rows)
    tags = some.column("split").tolist() if "split" in some.columns else [""] * len(rows)
    samples = some.read(range(len(rows)))
    captions = [sample.captions[0].text if sample.captions else "" for sample in samples]
    return [Thumb(small(s.image), caption, str(tag or "")) for s, caption, tag in zip(samples, captions, tags)]
