"""Runs the `dataset` stage: takes the index that `prepare` made, adds the splits, says where the shards are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.data.dataset import write_description
from orchestrator.data.source import Known, known
from orchestrator.data.splits import SPLITS, concept_splits, holdout_splits
from orchestrator.data.tables import bytes_column, write_table
from orchestrator.errors import DataError, UserError
from orchestrator.io.storage import Storage
from orchestrator.stages.base import Outcome, StageContext
from orchestrator.stages.dataset.config import DatasetStage, SplitConfig

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


def run(ctx: StageContext) -> Outcome:
    """Write the Dataset of a source that `data.source.prepare` has indexed; DataError if it has changed since."""
    config = ctx.config
    assert isinstance(config, DatasetStage)
    found = known(config.source, ctx.store)
    if found is None:
        raise DataError(
            f"the shards of '{config.source}' changed while the run was being prepared",
            "submit again: they are indexed anew",
        )
    tables = _take_tables(ctx, found)
    splits = _splits(tables, config.split)
    _write_splits(ctx, splits)
    copied = _copy_shards(ctx, found) if _copies(config, found, ctx.store.storage) else ()
    _describe(ctx, found, bool(copied))
    counts = Counter(splits.tolist())
    dropped = found.marker["dropped"]
    metrics = {"samples": float(len(splits)), "dropped": float(sum(dropped["counts"].values()))}
    metrics |= {f"samples_{split}": float(counts[split]) for split in SPLITS}
    how = "copied into the store" if copied else "referred to"
    summary = {"source": config.source, "shards": how, "splits": dict(counts), "dropped": dropped}
    return Outcome(metrics=metrics, summary=summary, undeclared=("location.json", *copied))


def _take_tables(ctx: StageContext, found: Known) -> dict[str, pa.Table]:
    """Copy the index tables into the artifact; those that splitting needs, loaded."""
    import pyarrow.parquet as pq

    for file in ("index.parquet", *found.marker["columns"].values()):
        (ctx.out / file).write_bytes(ctx.store.storage.get(f"sources/{found.location.key}/{file}"))
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


def _copies(config: DatasetStage, found: Known, store: Storage) -> bool:
    """The rule of `import: auto`: a remote store means workers elsewhere, which do not see this disk."""
    on_this_machine = found.location.builtin or "://" not in found.location.url
    store_is_remote = store.local("x") is None
    return config.import_ == "copy" or (config.import_ == "auto" and on_this_machine and store_is_remote)


def _copy_shards(ctx: StageContext, found: Known) -> tuple[str, ...]:
    """Copy the shards into the artifact; the names of the files written."""
    storage = Storage.open(found.location.url)
    for shard in found.location.shards:
        storage.download(shard.key, ctx.out / "shards" / shard.key)
    return tuple(f"shards/{shard.key}" for shard in found.location.shards)


def _describe(ctx: StageContext, found: Known, copied: bool) -> None:
    """Write dataset.json and location.json."""
    import pyarrow.parquet as pq

    marker, location = found.marker, found.location
    files = {**marker["columns"], "split": "split.parquet"}
    columns = {group: {"file": file, "columns": pq.read_schema(ctx.out / file).names} for group, file in files.items()}
    write_description(
        ctx.out,
        {
            "rows": marker["rows"],
            "selected": marker["rows"],
            "content_digest": marker["content_digest"],
            "shards": marker["shards"],
            "index": "index.parquet",
            "columns": columns,
            "selection": None,
            "location": "location.json",
        },
    )
    where: dict[str, Any] = {"name": location.name}
    where |= (
        {"copied": "shards"} if copied else {"builtin": location.source} if location.builtin else {"url": location.url}
    )
    (ctx.out / "location.json").write_text(json.dumps(where), encoding="utf-8")
