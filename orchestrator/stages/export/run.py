"""Runs the `export` stage.

webdataset/00000000.tar      members KEY.jpg (or png, webp), KEY.txt, KEY.json; KEY is the uid, and where a sample
                             repeats uid-0, uid-1, ... (as DataComp's resharder names them)
webdataset/00000000.parquet  a row a sample, in the same order: uid, key, all columns
webdataset/sizes.json        {"00000000.tar": samples}: open_clip's loader takes the length of an epoch from it
selection.npy                [n] of dtype "u8,u8" (high and low 64 bits of each uid), sorted; repeats stay
samples.parquet              a row a sample: uid, repeats, all columns
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.data.dataset import Dataset
from orchestrator.data.shard_writer import Tar, described
from orchestrator.data.tables import FORMATS, TableWriter, read_table, table_bytes
from orchestrator.errors import DataError
from orchestrator.stages.base import Outcome, StageContext
from orchestrator.stages.blocks import Pass, do
from orchestrator.stages.export.config import ExportStage
from orchestrator.store.artifacts import Handle
from orchestrator.store.parts import Parts

if TYPE_CHECKING:
    import pyarrow as pa

AT_ONCE = 512
"""Samples read together."""


def run(ctx: StageContext) -> Outcome:
    """Write the formats asked for; DataError if ids of the source are asked for and some sample has none."""
    config = ctx.config
    assert isinstance(config, ExportStage)
    export = Export(ctx.inputs["data"], config.shard_samples)
    export.dataset.check_shards()
    metrics = {"samples": float(len(export.dataset))}
    if "webdataset" in config.formats:
        parts = Parts(ctx.store.storage, ctx.fingerprint)

        def progress(done: int, total: int) -> None:
            ctx.events.emit("progress", done=done, total=total, unit="shards")

        one = Pass("sidecars", range(len(export)), partial(open_writer, export, parts))
        if (reason := do(one, parts, ctx.resources, ctx.should_stop, progress)) is not None:
            return Outcome(stopped=reason)
        metrics |= _webdataset(ctx.out / "webdataset", export, parts)
    if "datacomp" in config.formats:
        np.save(ctx.out / "selection.npy", uid_file(export.dataset, config.uids))
    if "parquet" in config.formats:
        _parquet(ctx.out / "samples.parquet", export.dataset)
    return Outcome(metrics=metrics)


@dataclass(frozen=True)
class Export:
    """The selected samples in order, repeats and all, cut into shards. Picklable."""

    data: Handle
    size: int

    @cached_property
    def dataset(self) -> Dataset:
        """The data set, opened once a process."""
        return Dataset.open(self.data)

    @cached_property
    def bounds(self) -> np.ndarray:
        """Positions at which the data set's blocks begin, and the number of samples: [blocks + 1]."""
        counts = [len(self.dataset.part(*rows)) for rows in self.dataset.blocks()]
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    def __len__(self) -> int:
        """Shards."""
        return -(-int(self.bounds[-1]) // self.size)

    def samples(self, shard: int) -> Iterator[tuple[Dataset, np.ndarray]]:
        """A shard's samples, some at a time, and which repetition of its sample each is: [n] int64."""
        start, stop = shard * self.size, min((shard + 1) * self.size, int(self.bounds[-1]))
        first, last = np.searchsorted(self.bounds, [start, stop - 1], side="right") - 1
        blocks = self.dataset.blocks()
        for block in range(int(first), int(last) + 1):
            data, begin = self.dataset.part(*blocks[block]), int(self.bounds[block])
            _, where = np.unique(data.rows, return_index=True)
            number = np.arange(len(data)) - np.repeat(where, np.diff([*where, len(data)]))
            inside = np.arange(max(start - begin, 0), min(stop - begin, len(data)))
            for at in range(0, len(inside), AT_ONCE):
                yield data.take(inside[at : at + AT_ONCE]), number[inside[at : at + AT_ONCE]]


def open_writer(export: Export, parts: Parts) -> Callable[[int], bytes]:
    """Gives what makes one shard: it is kept as a part, and its sidecar is returned."""

    def write(shard: int) -> bytes:
        import pyarrow as pa

        tar, tables = Tar(), []
        for data, number in export.samples(shard):
            tables.append(_append(tar, data, number))
        parts.put("shards", shard, tar.close())
        return table_bytes(pa.concat_tables(tables), {})

    return write


def _append(tar: Tar, data: Dataset, number: np.ndarray) -> pa.Table:
    import pyarrow as pa

    table, keys = data.table(), []
    suffixes = [FORMATS[code] for code in data.index("format").tolist()]
    facts = table.drop_columns([name for name in ("captions",) if name in table.column_names]).to_pylist()
    captions, images = data.captions(range(len(data))), data.images(range(len(data)))
    for uid, suffix, image, texts, known, n in zip(data.uids, suffixes, images, captions, facts, number.tolist()):
        key = f"{uid}-{n}" if n else uid
        tar.add(f"{key}.{suffix}", image)
        tar.add(f"{key}.txt", texts[0].text.encode())
        tar.add(f"{key}.json", described(uid, texts, known))
        keys.append(key)
    if "key" in table.column_names:
        table = table.rename_columns({"key": "source_key"})
    table = table.add_column(0, "uid", pa.array(list(data.uids), pa.string()))
    return table.add_column(1, "key", pa.array(keys, pa.string()))


def _webdataset(folder: Path, export: Export, parts: Parts) -> dict[str, float]:
    """Bring shards and sidecars into the artifact."""
    import pyarrow.parquet as pq

    folder.mkdir()
    sizes, total = {}, 0
    for shard in range(len(export)):
        name, data = f"{shard:08d}", parts.get("shards", shard)
        (folder / f"{name}.tar").write_bytes(data)
        table, _ = read_table(parts.get("sidecars", shard))
        pq.write_table(table.replace_schema_metadata(None), folder / f"{name}.parquet", compression="zstd")
        sizes[f"{name}.tar"], total = len(table), total + len(data)
    (folder / "sizes.json").write_text(json.dumps(sizes, indent=1))
    return {"shards": float(len(sizes)), "bytes": float(total)}


def uid_file(dataset: Dataset, uids: str) -> np.ndarray:
    """The ids of the selected samples, as often as each is selected, sorted: [n] of dtype "u8,u8"."""
    pieces = [_uids(dataset.part(*rows), uids) for rows in dataset.blocks()]
    found = np.concatenate([*pieces, np.empty(0, np.dtype("u8,u8"))])
    return found[np.lexsort((found["f1"], found["f0"]))]


def _uids(data: Dataset, uids: str) -> np.ndarray:
    found = np.empty(len(data), np.dtype("u8,u8"))
    if uids == "own":
        own = data.column("uid")
        found["f0"], found["f1"] = own["high"], own["low"]
        return found
    for place, uid in enumerate(data.column("source_uid").tolist()):
        try:
            found[place] = (int(uid[:16], 16), int(uid[16:32], 16))
        except (TypeError, ValueError):
            raise DataError(
                f"{data.describe(place)} has no 128-bit uid of its own in its json ({uid!r})",
                "export with `uids: own`, or leave such samples out",
            ) from None
    return found


def _parquet(path: Path, dataset: Dataset) -> None:
    """One table of everything, a block at a time."""
    tables = _tables(dataset)
    first = next(tables)
    with TableWriter(path, first.schema) as writer:
        for table in chain([first], tables):
            writer.write(table)


def _tables(dataset: Dataset) -> Iterator[pa.Table]:
    """The samples of each block, each once."""
    import pyarrow as pa

    for rows in dataset.blocks():
        unique, repeats = np.unique(dataset.part(*rows).rows, return_counts=True)
        data = dataset.at(unique)
        table = data.table().add_column(0, "uid", pa.array(list(data.uids), pa.string()))
        yield table.add_column(1, "repeats", pa.array(repeats, pa.uint16()))
