"""From what passes left of the blocks to the artifact: a selection, the columns that were made, the report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.curation.operator import FittedOperator
from orchestrator.data.dataset import Dataset, write_choice
from orchestrator.data.tables import write_table
from orchestrator.stages.curate.passes import Curation, load_arrays
from orchestrator.stages.curate.state import State, Step, arrow_type, to_arrow

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = "columns"
MOST_REPEATS = np.iinfo(np.uint16).max


class Assembly:
    """Goes once over the blocks as the last stretch left them, and writes what belongs into the artifact."""

    def __init__(self, curation: Curation, stretch: int, out: Path) -> None:
        self._curation, self._stretch, self._out = curation, stretch, out
        self.steps = [Step() for _ in curation.steps]
        self.before = 0
        self.apart = 0
        self.selected = 0
        self.splits: Counter[str] = Counter()
        self._bits = np.zeros(curation.dataset.num_rows, bool)
        self._counts: np.ndarray | None = None

    def write(self) -> None:
        """Write selection, columns, fitted knowledge and dataset.json."""
        import pyarrow as pa

        curation = self._curation
        if curation.types:
            schema = pa.schema([(name, arrow_type(type)) for name, type in sorted(curation.types.items())])
            write_table(self._out / f"{COLUMNS}.parquet", self._pieces(schema), schema)
        else:
            for _ in self._pieces(pa.schema([])):
                pass
        for place, operator in enumerate(curation.steps):
            if isinstance(operator, FittedOperator):
                fitted = curation.parts.get(f"fitted-{place}", 0)
                (self._out / f"fitted-{place}-{curation.names[place]}.safetensors").write_bytes(fitted)
                self.steps[place].counts.update(operator.facts(load_arrays(fitted)))
        selection = np.packbits(self._bits) if self._counts is None else self._counts
        columns = {COLUMNS: sorted(curation.types)} if curation.types else {}
        write_choice(self._out, curation.data, selection, self.selected, columns)

    def report(self) -> dict[str, Any]:
        """The funnel: what each operator saw, kept, dropped and why; no timings, for it is part of the result."""
        curation = self._curation
        steps = [
            {
                "operator": name,
                "options": operator.model_dump(mode="json", exclude_defaults=True),
                "in": step.seen,
                "kept": step.kept,
                "dropped": dict(sorted(step.dropped.items())),
                "examples": dict(sorted(step.examples.items())),
                "counts": dict(sorted(step.counts.items())),
            }
            for name, operator, step in zip(curation.names, curation.steps, self.steps)
        ]
        report = {"in": self.before, "kept": self.selected - self.apart, "apart": self.apart, "steps": steps}
        (self._out / "report.json").write_text(json.dumps(report, indent=1, sort_keys=True), encoding="utf-8")
        return report

    def _pieces(self, schema: pa.Schema) -> Iterator[pa.Table]:
        """The columns of each block, null where a sample was dropped; the rest is noted on the way."""
        import pyarrow as pa

        curation = self._curation
        for number, (start, stop) in enumerate(curation.blocks):
            state, (curated, others) = curation.state(self._stretch, number), curation.apart(number)
            for step, there in zip(self.steps, state.steps, strict=True):
                step.add(there)
            self.before += len(curated)
            self.apart += len(others)
            rows, repeats = state.block.data.rows, state.block.repeats
            left, times = np.unique(others.rows, return_counts=True)
            self._select(state.block.data, repeats)
            self._select(others.at(left), times if len(left) < len(others) else None)
            places = np.full(stop - start, -1, np.int64)
            places[rows - start], places[left - start] = np.arange(len(rows)), len(rows) + np.arange(len(left))
            taken = pa.array(places, mask=places < 0)
            values = [self._values(f, state, others.at(left)).take(taken) for f in schema]
            yield pa.table(values, schema=schema)

    def _values(self, field: pa.Field, state: State, others: Dataset) -> pa.Array:
        """A column that was made: of what is left of a block, then of the samples that were not curated."""
        import pyarrow as pa

        made = to_arrow(state.block.made[field.name], self._curation.types[field.name])
        if field.name != "captions" or not len(others):
            return pa.concat_arrays([made, pa.nulls(len(others), field.type)])
        return pa.concat_arrays([made, to_arrow(others.captions(range(len(others))), "captions")])

    def _select(self, data: Dataset, repeats: np.ndarray | None) -> None:
        """Select these samples, each once in `data`."""
        rows = data.rows
        self.selected += len(rows) if repeats is None else int(repeats.sum())
        if repeats is not None and self._counts is None:
            self._counts = self._bits.astype(np.uint16)
        if self._counts is not None:
            self._counts[rows] = 1 if repeats is None else np.minimum(repeats, MOST_REPEATS)
        self._bits[rows] = True
        if "split" in data.columns:
            names, counts = np.unique(data.column("split").astype(str), return_inverse=True)
            self.splits.update(dict(zip(names.tolist(), np.bincount(counts, repeats).astype(int).tolist())))
