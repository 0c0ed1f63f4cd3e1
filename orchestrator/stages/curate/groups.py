"""Bringing groups together: what blocks noted of their samples, dealt into buckets, compared, dealt back to blocks.

A group lies in one bucket whole (by its number modulo that of the buckets). Notes are narrow, some ten bytes a sample,
so one process deals them: through files of its scratch folder, a block and then a bucket at a time, whatever the size
of the data set. The comparisons are a pass over the buckets (stages/blocks.py) like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.curation.operator import GroupedOperator
from orchestrator.data.tables import read_table, table_bytes
from orchestrator.stages.blocks import Pass
from orchestrator.stages.curate.passes import Curation, load_arrays, save_arrays
from orchestrator.stages.curate.state import to_arrow

BUCKET_ROWS = 1 << 16
"""Samples of a bucket, about."""
MAX_BUCKETS = 512
"""Files open at once."""


def deal(curation: Curation, place: int, scratch: Path) -> Pass:
    """Deal the notes of the operator at a place into buckets; the pass that compares them."""
    count = min(MAX_BUCKETS, -(-curation.dataset.num_rows // BUCKET_ROWS))
    parts, name = curation.parts, f"bucket-{place}"
    if len(parts.done(name)) < count:
        shapes = _write(curation, place, count, scratch)
        for bucket in range(count):
            parts.put(name, bucket, save_arrays(_bucket(scratch, bucket, shapes)))
    return Pass(f"compared-{place}", range(count), _Opener(curation, place))


def _write(curation: Curation, place: int, count: int, scratch: Path) -> dict[str, Any]:
    """Append each block's notes to the files of their buckets; type and shape of each array."""
    shapes: dict[str, Any] = {}
    for old in scratch.glob("bucket-*"):
        old.unlink()
    for block in range(len(curation.blocks)):
        noted = _one_a_group(load_arrays(curation.parts.get(f"seen-{place}", block)))
        shapes |= {name: (values.dtype, values.shape[1:]) for name, values in noted.items()}
        bucket = (noted["group"] % np.uint64(count)).astype(np.int64)
        order = np.argsort(bucket, kind="stable")
        bounds = np.searchsorted(bucket[order], np.arange(count + 1))
        for name, values in noted.items():
            sorted_values = values[order]
            for number in np.flatnonzero(np.diff(bounds)).tolist():
                with (scratch / f"bucket-{number}-{name}").open("ab") as file:
                    file.write(np.ascontiguousarray(sorted_values[bounds[number] : bounds[number + 1]]).tobytes())
    return shapes


def _one_a_group(noted: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Where samples are in several groups each, a row for each of them."""
    if noted["group"].ndim == 1:
        return noted
    samples, groups = noted["group"].shape
    row = np.repeat(np.arange(samples), groups)
    return {name: values.reshape(-1) if name == "group" else values[row] for name, values in noted.items()}


def _bucket(scratch: Path, bucket: int, shapes: dict[str, Any]) -> dict[str, np.ndarray]:
    """A bucket's notes in uid order; its files go."""
    found = {}
    for name, (dtype, shape) in shapes.items():
        path = scratch / f"bucket-{bucket}-{name}"
        data = path.read_bytes() if path.exists() else b""
        found[name] = np.frombuffer(data, dtype).reshape(-1, *shape)
        path.unlink(missing_ok=True)
    order = np.lexsort((found["row"], *found["uid"].view(">u8").reshape(-1, 2).T[::-1]))
    return {name: values[order] for name, values in found.items()}


class _Opener:
    """Makes a process ready to compare buckets. Picklable."""

    def __init__(self, curation: Curation, place: int) -> None:
        self._curation, self._place = curation, place

    def __call__(self) -> Callable[[int], bytes]:
        curation, place = self._curation, self._place
        operator, tools = curation.steps[place], curation.tools_of(place)
        assert isinstance(operator, GroupedOperator)
        types = operator.adds()

        def compare(bucket: int) -> bytes:
            import pyarrow as pa

            from orchestrator.data.dataset import IDENTITY

            noted = load_arrays(curation.parts.get(f"bucket-{place}", bucket))
            row = noted.pop("row")
            noted["uid"] = np.ascontiguousarray(noted["uid"]).view(IDENTITY)[:, 0]
            verdict = operator.compare(noted, tools)
            reasons = np.full(len(row), "", object) if verdict.reasons is None else verdict.reasons
            names, codes = np.unique(reasons.astype(str), return_inverse=True)
            columns = {"row": pa.array(row, pa.uint64()), "reason": pa.array(codes, pa.uint32())}
            columns |= {name: to_arrow(values, types[name]) for name, values in verdict.columns.items()}
            return table_bytes(pa.table(columns), {"reasons": names.tolist(), "counts": dict(verdict.counts)})

        return compare


def deal_back(curation: Curation, place: int, buckets: int, scratch: Path) -> None:
    """Deal what comparisons said back to the blocks, as `verdict` parts in the order of their samples."""
    import pyarrow as pa

    parts, rows = curation.parts, curation.dataset.num_rows
    if len(parts.done(f"verdict-{place}")) == len(curation.blocks):
        return
    types = curation.steps[place].adds()
    said = np.lib.format.open_memmap(scratch / "reasons.npy", "w+", np.uint16, (rows,))
    columns: dict[str, np.ndarray] = {}
    reasons: dict[str, int] = {"": 0}
    counts: dict[str, float] = {}
    for bucket in range(buckets):
        table, facts = read_table(parts.get(f"compared-{place}", bucket))
        row = table["row"].to_numpy().astype(np.int64)
        codes = np.array([reasons.setdefault(reason, len(reasons)) for reason in facts["reasons"]], np.uint16)
        code = codes[table["reason"].to_numpy()]
        said[row[code > 0]] = code[code > 0]  # of a sample in several groups, one reason is enough
        for name in set(table.column_names) - {"row", "reason"}:
            values = table[name].to_numpy()
            if name not in columns:
                columns[name] = np.lib.format.open_memmap(scratch / f"{name}.npy", "w+", values.dtype, (rows,))
            columns[name][row] = values
        for name, value in facts["counts"].items():
            counts[name] = counts.get(name, 0) + value
    for block in range(len(curation.blocks)):
        row = load_arrays(parts.get(f"seen-{place}", block))["row"]
        found = {"reason": pa.array(said[row], pa.uint16())}
        found |= {name: to_arrow(values[row], types[name]) for name, values in columns.items()}
        facts = {"reasons": [reason for reason in reasons if reason], "counts": counts if block == 0 else {}}
        parts.put(f"verdict-{place}", block, table_bytes(pa.table(found), facts))
