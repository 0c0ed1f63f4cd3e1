"""A first look at somebody's shards, and the starter recipe that runs on them (`orch init --data`)."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from statistics import median

from orchestrator.data.index import index_shard
from orchestrator.data.location import locate
from orchestrator.data.sets import SETS
from orchestrator.data.tables import FORMATS
from orchestrator.errors import DataError
from orchestrator.io.storage import Storage


@dataclass(frozen=True)
class Look:
    """What the first shard says of the data.

    Attributes:
        source, name: as in a recipe; what to call the data.
        shards, bytes: of the whole source.
        samples: usable pairs in the first shard; `dropped`: reasons and counts of the others.
        formats: image format -> count.
        side: median of the shorter side in pixels.
        words: median length of the primary caption.
        concepts: different concepts in the first shard, 0 where samples carry none.
        styles: drawing styles in the first shard, of samples that carry a concept too.
        example: one caption.
    """

    source: str
    name: str
    shards: int
    bytes: int
    samples: int
    dropped: dict[str, int]
    formats: dict[str, int]
    side: int
    words: int
    concepts: int
    styles: list[str]
    example: str

    @property
    def estimate(self) -> int:
        """Pairs in the whole source, if all shards are like the first."""
        return self.samples * self.shards


def look(source: str) -> Look:
    """Read the first shard of a source; UserError if it cannot be found, DataError if it holds no usable pair."""
    place = locate(source)
    table = index_shard(Storage.open(place.url), place.shards[0].key)
    dropped = json.loads((table.schema.metadata or {}).get(b"dropped", b"{}")).get("counts", {})
    rows = table.to_pylist()
    if not rows:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in dropped.items()) or "it is empty"
        raise DataError(
            f"{place.shards[0].key} holds no usable image-text pair: {reasons}",
            "a sample is KEY.jpg (png, webp) beside KEY.txt, or KEY.json with a `caption`",
        )
    captions = [row["captions"][0]["text"] for row in rows]
    return Look(
        source=source,
        name=place.name,
        shards=len(place.shards),
        bytes=sum(shard.size for shard in place.shards),
        samples=len(rows),
        dropped=dropped,
        formats=dict(Counter(FORMATS[row["format"]] for row in rows)),
        side=int(median(min(row["width"] or 0, row["height"] or 0) for row in rows)),
        words=int(median(len(text.split()) for text in captions)),
        concepts=len({row["concept"] for row in rows if row.get("concept")}),
        styles=sorted({row["style"] for row in rows if row["concept"] and row["style"]}),
        example=captions[len(captions) // 2],
    )


def recipe(facts: Look, gpus: int = 0) -> str:
    """A recipe that runs on this data on this machine: dataset, curation, CLIP, evaluation."""
    model = "ViT-B-32" if gpus else "emoji-96x4"
    batch = 1024 if gpus else 128
    while batch > 16 and batch * 2 > facts.estimate:
        batch //= 2
    smallest = max(16, min(32, facts.side // 2))
    tasks = "[zeroshot, retrieval]" if facts.concepts > 1 else "[retrieval]"
    if facts.source in SETS:
        split = ""
    elif facts.styles:
        split = "\n    split: {ood_style: null}         # or a style to keep out of training: " + ", ".join(
            facts.styles
        )
    else:
        split = "\n    split: {holdout: 0.1}            # kept out of training, for evaluation"
    resources = f"{{gpus: {gpus}, cpus: {4 * gpus}, workers: {gpus}}}" if gpus else "{cpus: 2}"
    return f"""\
# yaml-language-server: $schema=schema.json
#
# A first CLIP on {facts.source}
# about {facts.estimate:,} pairs in {facts.shards} shards, {facts.bytes / 1e9:.2f} GB; e.g. "{facts.example}"
#
#   orch plan this-file.yaml       what would run, and why
#   orch submit this-file.yaml     run it
name: {facts.name}
stages:
  pairs:
    kind: dataset
    source: {json.dumps(facts.source)}{split}

  clean:
    kind: curate
    data: pairs
    steps: [dedup, {{min_size: {{pixels: {smallest}}}}}]

  clip:
    kind: pretrain
    data: clean
    model: {model}
    batch: {batch}
    steps: 200                         # raise it once this runs
    resources: {resources}

  scores:
    kind: evaluate
    data: pairs
    models: [clip]
    tasks: {tasks}
"""
