"""Tables from outside, looked up by samples' ids: sorted once, then mapped into memory by whoever asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from orchestrator.errors import DataError

if TYPE_CHECKING:
    from orchestrator.curation.block import Block

By = Literal["uid", "source_uid", "key"]
"""What samples are known by in the file: their uid here, their own uid from json, or their key in the shard."""


def ids(block: Block, by: By) -> np.ndarray:
    """What a block's samples are known by: [n] strings, empty where there is nothing."""
    if by == "uid":
        return np.array(list(block.data.uids), str)
    return np.array([value or "" for value in block.column(by).tolist()], str)


class Lookup:
    """Values by id. Holds the ids and the values, sorted: some 40 bytes a row and 4 a value."""

    def __init__(self, path: Path, by: By, columns: Sequence[str]) -> None:
        import pyarrow.parquet as pq

        there = pq.read_schema(path).names
        column = next((name for name in (by, "uid", "key") if name in there), None)
        missing = [name for name in columns if name not in there]
        if column is None or missing:
            raise DataError(
                f"{path.name} has no column '{missing[0] if missing else by}'", f"its columns: {', '.join(there)}"
            )
        table = pq.read_table(path, columns=[column, *columns])
        names = np.array([value or "" for value in table[column].to_pylist()], str)
        order = np.argsort(names, kind="stable")
        self._ids = names[order]
        self._values = {name: table[name].to_numpy(zero_copy_only=False)[order] for name in columns}

    def find(self, wanted: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Which ids [n] are there, and the values of these [m] by column; of ids that stand twice, the first row's."""
        places = np.minimum(np.searchsorted(self._ids, wanted), max(0, len(self._ids) - 1))
        there = self._ids[places] == wanted if len(self._ids) else np.zeros(len(wanted), bool)
        there &= wanted != ""
        return there, {name: values[places[there]] for name, values in self._values.items()}

    def all(self, wanted: np.ndarray, column: str) -> Iterator[tuple[int, Any]]:
        """Every value of each id [n] that is there: the id's place, and the value; of one id in the file's order."""
        first, last = (np.searchsorted(self._ids, wanted, side) for side in ("left", "right"))
        for place in np.flatnonzero((wanted != "") & (first < last)).tolist():
            for value in self._values[column][first[place] : last[place]]:
                yield place, value
