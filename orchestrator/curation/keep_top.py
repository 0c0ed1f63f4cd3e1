"""The best share of a score: a limit is found first, then it holds for each sample (DataComp, `get_threshold`).

The limit is the value at rank int(n share) of the descending order, counted from 0, and what equals it stays: so
int(n share) + 1 samples stay, and as many more as tie with the last one. It is exact (rank.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from orchestrator.curation.operator import Arrays, FittedOperator, Judge, Tools, Verdict
from orchestrator.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from orchestrator.curation.block import Block


class KeepTop(FittedOperator):
    """Keeps the share of samples with the greatest values in a column; those without a value are left out."""

    column: str
    """The column: of the data, or made by an operator before (`clip_score`, `match_score`)."""
    share: Annotated[float, Field(gt=0, le=1)]
    """Share of the samples that have a value (DataComp's best single filter: 0.3 by CLIP score)."""

    def reads(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    def observe(self, tools: Tools) -> Callable[[Block], Arrays]:
        """All values."""
        import numpy as np

        def seen(block: Block) -> Arrays:
            values = block.column(self.column).astype(np.float64)
            return {"values": values[~np.isnan(values)]}

        return seen

    def fit(self, seen: Iterator[Arrays], tools: Tools) -> Arrays:
        """The limit, and the number of values."""
        import numpy as np

        limit, count = quantile((block["values"] for block in seen), self.share)
        if not count:
            raise UserError(f"keep_top: no sample has a value in the column '{self.column}'")
        return {"limit": np.array([limit]), "count": np.array([count])}

    def facts(self, fitted: Arrays) -> Mapping[str, float]:
        """The limit, and of how many values it is."""
        return {"least value that stays": float(fitted["limit"][0]), "samples with a value": int(fitted["count"][0])}

    def open(self, fitted: Arrays, tools: Tools) -> Judge:
        """Leaves out what is below the limit."""
        import numpy as np

        limit = fitted["limit"][0]

        def judge(block: Block) -> Verdict:
            values = block.column(self.column).astype(np.float64)
            reasons = np.full(len(values), "", object)
            reasons[np.isnan(values)] = f"no {self.column}"
            reasons[values < limit] = f"{self.column} not among the best {self.share:.4g}"
            return Verdict(reasons)

        return judge


def quantile(pieces: Iterable[np.ndarray], share: float) -> tuple[float, int]:
    """The value at rank int(n share) of the descending order of n values, in pieces of any size, and n."""
    from orchestrator.curation.rank import at_rank

    found, count = at_rank(map(_ordered, pieces), lambda n: n - 1 - int(n * share))
    return (float("nan") if found is None else float(_value(found))), count


def _ordered(values: np.ndarray) -> np.ndarray:
    """Numbers whose order is that of the float64 values: their bits, negatives turned round."""
    import numpy as np

    bits = (values.astype(np.float64) + 0.0).view(np.uint64)  # -0 becomes 0
    top = np.uint64(1 << 63)
    return np.where(bits & top, ~bits, bits | top)


def _value(key: int) -> np.float64:
    """The value that has this number."""
    import numpy as np

    top = 1 << 63
    return np.uint64(key & ~top if key & top else ~key & (1 << 64) - 1).view(np.float64)
