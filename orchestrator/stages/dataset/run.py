"""Runs the `dataset` stage: takes the index that `prepare` made, adds the splits, says where the shards are.

It may run on any machine: the index is in the store, and so are the shards where they had to be copied in (the engine
has done it). Shards that are referred to must be in sight of this worker: better told here than in the middle of a
training.
"""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.data.bad import BadSamples
from orchestrator.data.dataset import write_description
from orchestrator.data.location import is_shared
from orchestrator.data.source import Known, changed, known_at
from orchestrator.data.splits import SPLITS, concept_splits, holdout_splits
from orchestrator.data.tables import bytes_column, write_table
from orchestrator.errors import OrchError, UserError
from orchestrator.io.storage import Storage
from orchestrator.stages.base import Outcome, StageContext
from orchestrator.stages.dataset.config import DatasetStage, SplitConfig

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


def run(ctx: StageContext) -> Outcome:
    """Write the Dataset of an indexed source.

    UserError if this worker cannot read shards that are referred to, DataError if they have changed since or hold more
    bad samples than `max_bad` allows.
    """
    config = ctx.config
    assert isinstance(config, DatasetStage)
    (source,) = config.external_sources()
    found = known_at(str(ctx.sources[source]), ctx.store)
    if found is None:
        raise changed(config.source)
    copied = config.copies(is_shared(config.source), ctx.store.storage.local("x") is not None)
    if copied and not found.copied(ctx.store):
        raise changed(config.source)
    if not copied:
        _check_in_sight(found, config.source)
    _check_bad(ctx, config, found)
    tables = _take_tables(ctx, found)
    splits = _splits(tables, config.split)
    _write_splits(ctx, splits)
    _describe(ctx, found, copied)
    counts = Counter(splits.tolist())
    dropped = found.marker["dropped"]
    metrics = {"samples": float(len(splits)), "dropped": float(sum(dropped["counts"].values()))}
    metrics |= {f"samples_{split}": float(counts[split]) for split in SPLITS}
    how = "copied into the store" if copied else "referred to"
    summary = {"source": config.source, "shards": how, "splits": dict(counts), "dropped": dropped}
    summary |= {"indexed_by": found.by, "duplicates": found.marker["duplicates"], "read": found.marker["read"]}
    return Outcome(metrics=metrics, summary={**summary, "needs": [found.place]}, undeclared=("location.json",))


def _check_in_sight(found: Known, source: str) -> None:
    """UserError naming node and place if the shards cannot be read here, DataError if they are not those indexed."""
    storage, reason = Storage.open(found.url), "its shards are not there"
    try:
        there = {info.key: info.size for info in storage.list("") if info.key in found.sizes}
        for name in [name for name, size in there.items() if size][:1]:
            storage.get_ranges(name, [0], [1])  # to be listed is not to be readable
    except OrchError as error:
        if is_shared(source):
            raise
        there, reason = {}, error.message
    if not there:
        raise UserError(
            f"'{source}' cannot be read by the worker on node '{socket.gethostname()}': {found.url}: {reason}",
            "write `import: copy` in the dataset stage: the machine that submits copies the shards into the store; "
            "or put them where every node sees them",
        )
    if there != found.sizes:
        raise changed(source)


def _check_bad(ctx: StageContext, config: DatasetStage, found: Known) -> None:
    """DataError if the index left out more samples than `max_bad` allows; said, if it left out any."""
    bad = BadSamples()
    bad.merge(found.marker["dropped"])
    size = found.marker["rows"] + bad.counts.total()
    bad.check(found.marker["name"], size, config.max_bad)
    if bad.counts:
        text = f"left out {bad.counts.total():,} of {size:,} samples: {bad}"
        ctx.events.emit("message", level="warning", text=text)


def _take_tables(ctx: StageContext, found: Known) -> dict[str, pa.Table]:
    """Copy the index tables into the artifact; those that splitting needs, loaded."""
    import pyarrow.parquet as pq

    for file in ("index.parquet", *found.marker["columns"].values()):
        (ctx.out / file).write_bytes(ctx.store.storage.get(f"{found.place}/{file}"))
    return {
        group: pq.read_table(ctx.out / f"{group}.parquet")
        for group in ("index", "labels")
        if (ctx.out / f"{group}.parquet").exists()
    }


def _splits(tables: Mapping[str, pa.Table], config: SplitConfig) -> np.ndarray:
    """The split [n] of every sample; UserError if the style to hold out is not among the data's."""
    labels = tables.get("labels")
    if labels is None or not {"concept", "style"} <= set(labels.column_names):
        uids = [uid.tobytes().hex() for uid in bytes_column(tables["index"]["uid"], 16)]
        return holdout_splits(uids, seed=config.seed, holdout=config.holdout)
    styles = labels["style"].to_pylist()
    there = sorted(set(styles) - {None})
    if config.ood_style is not None and config.ood_style not in there:
        raise UserError(
            f"split.ood_style '{config.ood_style}' is not a style of these data ({', '.join(there[:12])})",
            "name one of them, or null to hold out none",
        )
    return concept_splits(
        labels["concept"].to_pylist(),
        styles,
        seed=config.seed,
        ood_style=config.ood_style,
        unseen=config.unseen,
        held=config.held,
    )


def _write_splits(ctx: StageContext, splits: np.ndarray) -> None:
    import pyarrow as pa

    table = pa.table({"split": pa.array(splits, pa.string())})
    write_table(ctx.out / "split.parquet", [table], table.schema)


def _describe(ctx: StageContext, found: Known, copied: bool) -> None:
    """Write dataset.json and location.json."""
    import pyarrow.parquet as pq

    marker = found.marker
    files = {**marker["columns"], "split": "split.parquet"}
    columns = {group: {"file": file, "columns": pq.read_schema(ctx.out / file).names} for group, file in files.items()}
    write_description(
        ctx.out,
        {
            "rows": marker["rows"],
            "selected": marker["rows"],
            "content_digest": marker["content_digest"],
            "indexed_by": marker["by"],
            "shards": marker["shards"],
            "index": "index.parquet",
            "columns": columns,
            "selection": None,
            "location": "location.json",
        },
    )
    where: dict[str, Any] = {"name": marker["name"]}
    if copied:
        where["copied"] = f"{found.place}/shards"
    elif found.builtin:
        where["builtin"] = found.builtin
    else:
        where["url"] = found.url
    (ctx.out / "location.json").write_text(json.dumps(where), encoding="utf-8")
