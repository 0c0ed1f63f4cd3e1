"""Bad samples: counted by reason, with examples, and left out up to the recipe's limit.

A sample is bad as it was indexed: its image ends in the middle, its caption is not text. That is a property of the
data, the same for everybody who reads them, so leaving it out gives everybody the same result, and `max_bad` decides
whether a stage goes on, never what it makes. One number means a count, a fraction a share of the data set's samples.

A shard that is gone, shorter or other than it was indexed is something else: results are known by the digest of
their data, and these would no longer be those data. It is refused at once (data/shards.py, data/dataset.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from orchestrator.errors import DataError

if TYPE_CHECKING:
    from orchestrator.data.dataset import Dataset

MaxBad = Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=1)]
"""How many samples may be bad: a count, or a share of the data set's samples."""
FEW: MaxBad = 0.01
"""What a stage accepts if the recipe says nothing."""
EXAMPLES = 5
"""Kept, and told, of each reason."""


class BadSample(DataError):
    """A sample that cannot be used. `reason` is what it is counted under, `detail` is about this one alone."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass
class BadSamples:
    """What was left out: reason -> count, and a few examples of each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, example: str, count: int = 1) -> None:
        """Count some of one reason."""
        self.counts[reason] += count
        if example and len(self.examples.setdefault(reason, [])) < EXAMPLES:
            self.examples[reason].append(example)

    def merge(self, other: Mapping[str, Any]) -> None:
        """Add what `as_json` gave elsewhere."""
        self.counts.update(other["counts"])
        for reason, examples in other["examples"].items():
            mine = self.examples.setdefault(reason, [])
            mine.extend(examples[: EXAMPLES - len(mine)])

    def as_json(self) -> dict[str, Any]:
        """Plain values, sorted."""
        return {"counts": dict(sorted(self.counts.items())), "examples": dict(sorted(self.examples.items()))}

    def __str__(self) -> str:
        """The reasons, the most frequent first, with an example each."""
        return ", ".join(f"{reason}: {n:,} ({self.examples[reason][0]})" for reason, n in self.counts.most_common())

    def check(self, name: str, size: int, max_bad: MaxBad) -> None:
        """DataError if these are more than `max_bad` allows of the `size` samples of data called `name`."""
        bad, most = self.counts.total(), allowed(max_bad, size)
        if bad > most:
            raise DataError(
                f"{bad:,} of the {size:,} samples of '{name}' are bad, {most:,} allowed (max_bad: {max_bad}): {self}",
                "repair the shards, or raise `max_bad` of this stage; submitting again goes on",
            )


def allowed(max_bad: MaxBad, size: int) -> int:
    """How many of `size` samples may be bad."""
    return max_bad if isinstance(max_bad, int) else int(max_bad * size)


class Tally:
    """The bad samples that one process meets in a data set, each counted once.

    Args:
        name, size: of the whole data set.
        max_bad: how many it may meet; one more, and `meet` raises DataError.
        tell: takes a line about each of the first few.
    """

    def __init__(
        self, name: str, size: int, max_bad: MaxBad = 0, tell: Callable[[str], object] = lambda line: None
    ) -> None:
        self.found = BadSamples()
        self.allowed = allowed(max_bad, size)
        self._name, self._size, self._max_bad, self._tell = name, size, max_bad, tell
        self._rows: dict[int, tuple[str, str]] = {}

    def meet(self, dataset: Dataset, row: int, bad: BadSample) -> None:
        """Count the sample at this position of a selection of the data set."""
        if self._count(int(dataset.rows[row]), bad.reason, f"{dataset.describe(row)} {bad.detail}".rstrip()):
            if self.found.counts[bad.reason] <= EXAMPLES:
                self._tell(f"left out: {dataset.describe(row)}: {bad.message}")
            self.check()

    def check(self) -> None:
        """DataError if there are more than allowed."""
        self.found.check(self._name, self._size, self._max_bad)

    def state(self) -> dict[str, list[str]]:
        """Plain values from which `restore` goes on: table row -> reason, example."""
        return {str(row): list(facts) for row, facts in self._rows.items()}

    def restore(self, state: Mapping[str, list[str]]) -> None:
        """Count what was met before, here or elsewhere."""
        for row, (reason, example) in state.items():
            self._count(int(row), reason, example)

    def _count(self, row: int, reason: str, example: str) -> bool:
        """Whether it is a new one."""
        if row in self._rows:
            return False
        self._rows[row] = (reason, example if self.found.counts[reason] < EXAMPLES else "")
        self.found.add(reason, example)
        return True
