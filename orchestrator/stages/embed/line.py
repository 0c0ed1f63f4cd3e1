"""A long row of features that is filled from the left, kept in parts, and found again after a crash.

The arrays lie one behind the other: a position is a number, from 0 to the sum of their sizes. A checkpoint at a
position holds the features since the one before and says where they begin, so nothing is written twice. Restoring
reads the parts that continue each other from 0 on, whichever generation wrote them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import numpy as np

from orchestrator.data.bad import Tally
from orchestrator.data.embeddings import Array
from orchestrator.store.checkpoints import CheckpointStore

PART = "part.json"


class Line:
    """The arrays of an embed stage as one line, and its checkpoints, which keep the count of bad samples, too."""

    def __init__(self, arrays: Sequence[Array], checkpoints: CheckpointStore, tally: Tally) -> None:
        self.position = 0
        self._arrays, self._checkpoints, self._tally = arrays, checkpoints, tally
        self._saved = 0

    def __len__(self) -> int:
        """Features in all."""
        return sum(map(len, self._arrays))

    def add(self, features: np.ndarray) -> None:
        """Put features [n, dims] of one array at the position, and move it behind them."""
        ((values, rows),) = self._spans(self.position, self.position + len(features))
        values[rows, 0] = features
        self.position += len(features)

    def save(self) -> None:
        """Keep what was added since the last checkpoint."""
        files = {PART: json.dumps({"start": self._saved, "bad": self._tally.state()}).encode()}
        for number, (values, rows) in enumerate(self._spans(self._saved, self.position)):
            buffer = io.BytesIO()
            np.save(buffer, values[rows])
            files[f"{number}.npy"] = buffer.getvalue()
        self._checkpoints.save(self.position, files)
        self._saved = self.position

    def restore(self) -> int:
        """Fill in what was kept and move behind it; the position."""
        for ref in self._checkpoints.complete():
            part = json.loads(self._checkpoints.read(ref, PART))
            if part["start"] != self.position:
                continue
            self._tally.restore(part["bad"])
            for number, (values, rows) in enumerate(self._spans(self.position, ref.samples)):
                values[rows] = np.load(io.BytesIO(self._checkpoints.read(ref, f"{number}.npy")))
            self.position = self._saved = ref.samples
        return self.position

    def _spans(self, start: int, end: int) -> list[tuple[np.ndarray, slice]]:
        """The stretch from start to end as rows of the arrays that it touches."""
        found: list[tuple[np.ndarray, slice]] = []
        before = 0
        for array in self._arrays:
            first, last = max(start - before, 0), min(end - before, len(array))
            if first < last:
                found.append((array.values, slice(first, last)))
            before += len(array)
        return found
