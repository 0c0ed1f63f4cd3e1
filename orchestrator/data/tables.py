"""Parquet tables as the Dataset format wants them: a schema a group, fixed row groups, equal bytes for equal rows.

Row groups have `ROW_GROUP` rows whatever the sizes of the pieces that were written, so a table does not depend on how
the work was cut. pyarrow is imported when needed: planning must not pay for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

ROW_GROUP = 65536
LABELS = ("concept", "style", "category", "subcategory", "label")
FORMATS = ("jpg", "png", "webp")
"""Values of the index's `format` column, by number."""


def schemas() -> dict[str, pa.Schema]:
    """The schema of the base index ("index") and of each column group that indexing makes."""
    import pyarrow as pa

    members = [(f"{m}_{what}", pa.uint64()) for m in ("image", "text", "json") for what in ("offset", "bytes")]
    caption = pa.struct([("slot", pa.string()), ("lang", pa.string()), ("text", pa.string())])
    return {
        "index": pa.schema(
            [(name, pa.binary(16)) for name in ("uid", "image_digest")]
            + [("shard", pa.uint32()), *members, ("format", pa.uint8())]
        ),
        "captions": pa.schema([("captions", pa.list_(caption))]),
        "source": pa.schema([("key", pa.string()), ("source_uid", pa.string())]),
        "sizes": pa.schema([("width", pa.uint32()), ("height", pa.uint32())]),
        "labels": pa.schema([(name, pa.string()) for name in LABELS]),
    }


def write_table(path: Path, pieces: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Write pieces of a table one after the other, with fixed row groups; pieces may be empty."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    waiting = schema.empty_table()
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for piece in pieces:
            waiting = pa.concat_tables([waiting, piece.select(schema.names).cast(schema)])
            full = len(waiting) - len(waiting) % ROW_GROUP
            if full:
                writer.write_table(waiting.slice(0, full), row_group_size=ROW_GROUP)
                waiting = waiting.slice(full)
        if len(waiting):
            writer.write_table(waiting, row_group_size=ROW_GROUP)


def bytes_column(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """A fixed-size binary column without nulls as [n, width] uint8."""
    import numpy as np

    chunks = [
        np.frombuffer(c.buffers()[1], np.uint8)[c.offset * width :][: len(c) * width] for c in column.chunks if len(c)
    ]
    return np.concatenate([*chunks, np.empty(0, np.uint8)]).reshape(-1, width)
