"""Parquet tables as the Dataset format wants them: a schema a group, fixed row groups, equal bytes for equal rows.

Row groups have `ROW_GROUP` rows whatever the sizes of the pieces that were written, so a table does not depend on how
the work was cut. pyarrow is imported when needed: planning must not pay for it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

ROW_GROUP = 65536
LABELS = ("concept", "style", "category", "subcategory", "label")
OPTIONAL = (*LABELS, "original_width", "original_height")
"""Columns that a Dataset has if any of its samples does."""
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
        "sizes": pa.schema([(name, pa.uint32()) for name in ("width", "height", "original_width", "original_height")]),
        "labels": pa.schema([(name, pa.string()) for name in LABELS]),
    }


class TableWriter:
    """Writes one table piece by piece; pieces may be empty, and have further columns. A context manager."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        import pyarrow.parquet as pq

        self._schema = schema
        self._waiting = schema.empty_table()
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        if kind is None and len(self._waiting):
            self._writer.write_table(self._waiting, row_group_size=ROW_GROUP)
        self._writer.close()

    def write(self, piece: pa.Table) -> None:
        """Go on with these rows."""
        import pyarrow as pa

        self._waiting = pa.concat_tables([self._waiting, piece.select(self._schema.names).cast(self._schema)])
        full = len(self._waiting) - len(self._waiting) % ROW_GROUP
        if full:
            self._writer.write_table(self._waiting.slice(0, full), row_group_size=ROW_GROUP)
            self._waiting = self._waiting.slice(full)


def write_table(path: Path, pieces: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Write pieces of a table one after the other, with fixed row groups."""
    with TableWriter(path, schema) as writer:
        for piece in pieces:
            writer.write(piece)


def bytes_column(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """A fixed-size binary column without nulls as [n, width] uint8."""
    import numpy as np

    chunks = [
        np.frombuffer(c.buffers()[1], np.uint8)[c.offset * width :][: len(c) * width] for c in column.chunks if len(c)
    ]
    return np.concatenate([*chunks, np.empty(0, np.uint8)]).reshape(-1, width)


def binary_column(values: np.ndarray) -> pa.Array:
    """The inverse of `bytes_column`: [n, width] uint8 as fixed-size binary."""
    import pyarrow as pa

    size, width = values.shape
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), size, [None, pa.py_buffer(values.tobytes())])


def table_bytes(table: pa.Table, facts: Mapping[str, Any]) -> bytes:
    """A table with JSON facts as an Arrow stream."""
    import pyarrow as pa

    sink = io.BytesIO()
    table = table.replace_schema_metadata({"facts": json.dumps(facts)})
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return sink.getvalue()


def read_table(data: bytes) -> tuple[pa.Table, dict[str, Any]]:
    """What `table_bytes` gave."""
    import pyarrow as pa

    table = pa.ipc.open_stream(data).read_all()
    return table, json.loads(table.schema.metadata[b"facts"])
