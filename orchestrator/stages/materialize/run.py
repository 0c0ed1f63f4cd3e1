"""Runs the `materialize` stage: each new shard is made on its own, by whichever worker is free, then all are tied
together by a new index.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.data.dataset import SELECTION, Dataset, write_description
from orchestrator.data.sampler import permute
from orchestrator.data.shard_writer import Tar, described
from orchestrator.data.tables import FORMATS, TableWriter, binary_column, read_table, schemas, table_bytes
from orchestrator.stages.base import Outcome, StageContext
from orchestrator.stages.blocks import Pass, do
from orchestrator.stages.materialize.config import MaterializeStage
from orchestrator.store.artifacts import Handle
from orchestrator.store.parts import Parts

if TYPE_CHECKING:
    import pyarrow as pa

SHARDS = "shards"
AT_ONCE = 512
"""Samples read together."""
STORED = ("captions", "key", "source_uid")
"""Columns that are groups of their own, or what the index reads from elsewhere in a sample's json."""


@dataclass(frozen=True)
class Selection:
    """The selected samples by position, each once, without a list of them. Picklable.

    Attributes:
        data: the data set.
        size: samples of a shard.
        seed: of the order; None: as they lie.
    """

    data: Handle
    size: int
    seed: int | None

    @cached_property
    def dataset(self) -> Dataset:
        """The data set, opened once a process."""
        return Dataset.open(self.data)

    @cached_property
    def bounds(self) -> np.ndarray:
        """Positions at which the data set's blocks begin, and the number of samples: [blocks + 1]."""
        counts = [len(np.unique(self.dataset.part(*rows).rows)) for rows in self.dataset.blocks()]
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    def __len__(self) -> int:
        """Shards."""
        return -(-int(self.bounds[-1]) // self.size)

    def rows(self, shard: int) -> np.ndarray:
        """Table rows of a shard's samples, in its order."""
        total = int(self.bounds[-1])
        positions = np.arange(shard * self.size, min((shard + 1) * self.size, total))
        if self.seed is not None:
            positions = permute(positions, total, self.seed, 0)
        found, blocks = np.empty(len(positions), np.int64), self.dataset.blocks()
        inside = np.searchsorted(self.bounds, positions, side="right") - 1
        for block in np.unique(inside).tolist():
            here = inside == block
            found[here] = np.unique(self.dataset.part(*blocks[block]).rows)[positions[here] - self.bounds[block]]
        return found


def run(ctx: StageContext) -> Outcome:
    """Write the shards, and the Dataset that they are."""
    config = ctx.config
    assert isinstance(config, MaterializeStage)
    selection = Selection(ctx.inputs["data"], config.shard_samples, config.seed if config.shuffle else None)
    selection.dataset.check_shards()
    parts = Parts(ctx.store.storage, ctx.fingerprint)

    def progress(done: int, total: int) -> None:
        ctx.events.emit("progress", done=done, total=total, unit="shards")

    one = Pass("index", range(len(selection)), partial(open_writer, selection, parts))
    if (reason := do(one, parts, ctx.resources, ctx.should_stop, progress)) is not None:
        return Outcome(stopped=reason)
    shards = _gather(ctx.out, selection, parts)
    _describe(ctx.out, selection, shards)
    metrics = {"samples": float(len(selection.dataset)), "shards": float(len(shards))}
    metrics["bytes"] = float(sum(size for _, size in shards))
    return Outcome(metrics=metrics, undeclared=("location.json",))


def open_writer(selection: Selection, parts: Parts) -> Callable[[int], bytes]:
    """Gives what makes one shard: it is kept as a part, and its table is returned."""

    def write(shard: int) -> bytes:
        import pyarrow as pa

        tar, data = Tar(), selection.dataset.at(selection.rows(shard))
        tables = []
        for start in range(0, len(data), AT_ONCE):
            tables.append(_append(tar, data.take(range(start, min(start + AT_ONCE, len(data)))), shard))
        parts.put(SHARDS, shard, tar.close())
        return table_bytes(pa.concat_tables(tables), {})

    return write


def _append(tar: Tar, data: Dataset, shard: int) -> pa.Table:
    """Append samples to a shard; their rows of the index, with all other columns."""
    import pyarrow as pa

    table = data.table()
    suffixes = [FORMATS[code] for code in data.index("format").tolist()]
    facts = table.drop_columns([name for name in STORED if name in table.column_names]).to_pylist()
    captions, images = data.captions(range(len(data))), data.images(range(len(data)))
    places: dict[str, list[int]] = {f"{m}_{w}": [] for m in ("image", "text", "json") for w in ("offset", "bytes")}
    for uid, suffix, image, texts, known in zip(data.uids, suffixes, images, captions, facts):
        members = {"image": (suffix, image), "text": ("txt", texts[0].text.encode())}
        members["json"] = ("json", described(uid, texts, known))
        for member, (ending, content) in members.items():
            offset, size = tar.add(f"{uid}.{ending}", content)
            places[f"{member}_offset"].append(offset)
            places[f"{member}_bytes"].append(size)
    index = {name: pa.array(values, pa.uint64()) for name, values in places.items()}
    digests = b"".join(hashlib.sha256(image).digest()[:16] for image in images)  # an index of headers has none
    index["uid"] = binary_column(data.index("uid"))
    index["image_digest"] = binary_column(np.frombuffer(digests, np.uint8).reshape(-1, 16))
    index["shard"] = pa.array([shard] * len(data), pa.uint32())
    index["format"] = pa.array(data.index("format"), pa.uint8())
    for name, column in index.items():
        table = table.append_column(name, column)
    return table.append_column("row", pa.array(data.rows, pa.uint64()))


def _gather(out: Path, selection: Selection, parts: Parts) -> list[tuple[str, int]]:
    """Bring shards and tables into the artifact, one after the other; names and sizes of the shards."""
    (out / SHARDS).mkdir()
    shards, schema = [], schemas()["index"]
    counts: list[np.ndarray] = []
    with ExitStack() as stack:
        writers: dict[str, TableWriter] = {}
        for shard in range(len(selection)):
            data, name = parts.get(SHARDS, shard), f"{shard:05d}.tar"
            (out / SHARDS / name).write_bytes(data)
            shards.append((name, len(data)))
            table, _ = read_table(parts.get("index", shard))
            counts.append(_counts(selection, table["row"].to_numpy().astype(np.int64)))
            table = table.replace_schema_metadata(None).drop_columns(["row"])
            if not writers:
                columns = table.drop_columns(schema.names).schema
                writers["index"] = stack.enter_context(TableWriter(out / "index.parquet", schema))
                writers["columns"] = stack.enter_context(TableWriter(out / "columns.parquet", columns))
            for writer in writers.values():
                writer.write(table)
    if (repeats := np.concatenate(counts)).max(initial=1) > 1:
        np.save(out / SELECTION, repeats)
    return shards


def _counts(selection: Selection, rows: np.ndarray) -> np.ndarray:
    """How often each of these rows is selected."""
    blocks = selection.dataset.blocks()
    starts = np.array([start for start, _ in blocks])
    counts = np.ones(len(rows), np.uint16)
    inside = np.searchsorted(starts, rows, side="right") - 1
    for block in np.unique(inside).tolist():
        found, times = np.unique(selection.dataset.part(*blocks[block]).rows, return_counts=True)
        here = inside == block
        counts[here] = times[np.searchsorted(found, rows[here])]
    return counts


def _describe(out: Path, selection: Selection, shards: list[tuple[str, int]]) -> None:
    import pyarrow.parquet as pq

    upstream = json.loads(selection.data.read("dataset.json"))
    names = pq.read_schema(out / "columns.parquet").names
    repeated = (out / SELECTION).exists()
    write_description(
        out,
        {
            "rows": int(selection.bounds[-1]),
            "selected": len(selection.dataset),
            "content_digest": upstream["content_digest"],
            "indexed_by": "content",
            "shards": shards,
            "index": "index.parquet",
            "columns": {"columns": {"file": "columns.parquet", "columns": names}},
            "selection": SELECTION if repeated else None,
            "location": "location.json",
        },
    )
    where = {"name": selection.dataset.name, "here": SHARDS}
    (out / "location.json").write_text(json.dumps(where), encoding="utf-8")
