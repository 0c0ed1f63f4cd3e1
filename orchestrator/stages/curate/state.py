"""What is known of a block between two passes: which of its samples are left, what was made of them, what was said.

It travels as an Arrow stream, a part in the store (store/parts.py). Samples that were left out are gone from it; their
reasons are counted in the steps, with the first few ids in uid order as examples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.curation.block import Block
from orchestrator.curation.operator import ColumnType, Verdict
from orchestrator.data.dataset import Caption, Dataset
from orchestrator.data.tables import read_table, schemas, table_bytes

if TYPE_CHECKING:
    import pyarrow as pa

EXAMPLES = 10
"""Sample ids kept for each reason: the first in uid order."""


@dataclass
class Step:
    """What one operator did: samples it saw and kept, the reasons, examples of each, its own figures, seconds."""

    seen: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def add(self, other: Step) -> None:
        """Add what it did elsewhere."""
        self.seen, self.kept, self.seconds = (
            self.seen + other.seen,
            self.kept + other.kept,
            self.seconds + other.seconds,
        )
        self.dropped.update(other.dropped)
        self.counts.update(other.counts)
        for reason, uids in other.examples.items():
            self.examples[reason] = sorted([*self.examples.get(reason, ()), *uids])[:EXAMPLES]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `from_json`."""
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Step:
        """What `to_json` gave."""
        return cls(**{**values, "dropped": Counter(values["dropped"]), "counts": Counter(values["counts"])})


@dataclass
class State:
    """A block between two passes."""

    block: Block
    steps: list[Step]

    def apply(self, name: str, verdict: Verdict, seconds: float) -> None:
        """Take an operator's verdict over the block's samples."""
        step, block = Step(seen=len(self.block), seconds=seconds, counts=Counter(verdict.counts)), self.block
        for column, values in verdict.columns.items():
            block.made[column] = values
        if verdict.repeats is not None:
            block.repeats = verdict.repeats if block.repeats is None else block.repeats * verdict.repeats
        if verdict.reasons is not None and (out := np.flatnonzero(verdict.reasons != "")).size:
            reasons = [f"{name}: {reason}" for reason in verdict.reasons[out].tolist()]
            step.dropped.update(reasons)
            uids = block.data.take(out).uids
            for uid, reason in sorted(zip(uids, reasons)):
                if len(step.examples.setdefault(reason, [])) < EXAMPLES:
                    step.examples[reason].append(uid)
            block = block.where(np.flatnonzero(verdict.reasons == ""))
        else:
            block = Block(block.data, block.made, block.repeats)  # what it had read may be replaced
        step.kept = len(block)
        self.block = block
        self.steps.append(step)

    def to_bytes(self, types: Mapping[str, ColumnType]) -> bytes:
        """As a part of a pass; `types` are those of the columns that were made."""
        import pyarrow as pa

        columns = {"row": pa.array(self.block.data.rows, pa.uint64())}
        if self.block.repeats is not None:
            columns["repeats"] = pa.array(self.block.repeats, pa.uint16())
        for name, values in self.block.made.items():
            columns[f"made {name}"] = to_arrow(values, types[name])
        return table_bytes(pa.table(columns), {"steps": [step.to_json() for step in self.steps]})

    @classmethod
    def from_bytes(cls, data: bytes, dataset: Dataset) -> State:
        """What `to_bytes` gave, of a block of this data set."""
        table, facts = read_table(data)
        names = [name for name in table.column_names if name.startswith("made ")]
        made = {name.removeprefix("made "): from_arrow(table[name]) for name in names}
        repeats = table["repeats"].to_numpy() if "repeats" in table.column_names else None
        block = Block(dataset.at(table["row"].to_numpy().astype(np.int64)), made, repeats)
        return cls(block, [Step.from_json(step) for step in facts["steps"]])


def arrow_type(type: ColumnType) -> pa.DataType:
    """A column type as Arrow's."""
    import pyarrow as pa

    if type == "captions":
        return schemas()["captions"].field(0).type
    return pa.list_(pa.uint32()) if type == "list<uint32>" else pa.type_for_alias(type)


def to_arrow(values: Any, type: ColumnType) -> pa.Array:
    """Values [n] of a column of that type."""
    import pyarrow as pa

    if type == "captions":
        values = [[vars(caption) for caption in captions] for captions in values]
    elif isinstance(values, np.ndarray) and values.dtype == object:
        values = values.tolist()
    return pa.array(values, arrow_type(type))


def from_arrow(column: pa.ChunkedArray) -> Any:
    """The values that `to_arrow` took: arrays of numbers and objects, lists of captions and of lists."""
    import pyarrow as pa

    if not pa.types.is_list(column.type):
        return column.to_numpy()
    found = column.to_pylist()
    if pa.types.is_struct(column.type.value_type):
        return [tuple(Caption(**caption) for caption in captions or ()) for captions in found]
    return found
