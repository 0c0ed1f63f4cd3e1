"""A random part of the samples, by a hash of their ids: the same ones however they lie, and a part of any larger part.

Without `by` the number is exact. With it, each value of a column keeps its share, rounded up, so none is lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from orchestrator.curation.operator import Arrays, FittedOperator, GroupedOperator, Judge, Tools, Verdict

if TYPE_CHECKING:
    import numpy as np

    from orchestrator.curation.block import Block

Share = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0)]


class Sample(FittedOperator):
    """Keeps a random share or number of the samples, exactly."""

    share: Share | None = None
    """Share of the samples that stays, rounded up. Either this or `count` is given."""
    count: Annotated[int, Field(ge=1)] | None = None
    """Number of samples that stays; all, if there are fewer."""
    seed: Seed = 0
    """Decides which ones. With the same seed a smaller part lies in a larger one."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.share is None) == (self.count is None):
            raise ValueError("sample needs either `share` or `count`")
        return self

    def observe(self, tools: Tools) -> Callable[[Block], Arrays]:
        """All hashes."""
        return lambda block: {"hash": _hashes(self.seed, block.uid)}

    def fit(self, seen: Iterator[Arrays], tools: Tools) -> Arrays:
        """The greatest hash that stays."""
        import math

        import numpy as np

        from orchestrator.curation.rank import at_rank

        def last(count: int) -> int:
            wanted = self.count if self.share is None else math.ceil(round(count * self.share, 6))
            return min(wanted or 0, count) - 1

        limit, count = at_rank((block["hash"] for block in seen), last)
        return {"limit": np.array([limit or 0], np.uint64), "count": np.array([count])}

    def facts(self, fitted: Arrays) -> Mapping[str, float]:
        """Of how many it is."""
        return {"samples drawn from": int(fitted["count"][0])}

    def open(self, fitted: Arrays, tools: Tools) -> Judge:
        """Leaves out what has a greater hash."""
        import numpy as np

        limit = fitted["limit"][0]
        return lambda block: Verdict(np.where(_hashes(self.seed, block.uid) > limit, "not drawn", "").astype(object))


class SampleBy(GroupedOperator):
    """Keeps a random share of the samples of each value of a column (stratified sampling), at least one."""

    column: str
    """The column whose values are the strata: of the data (`category`), or made by an operator before."""
    share: Share
    """Share of each that stays, rounded up."""
    most: Annotated[int, Field(ge=1)] | None = None
    """At most this many of each."""
    seed: Seed = 0
    """Decides which ones."""

    def reads(self) -> tuple[str, ...]:
        return (self.column,)

    def keys(self, tools: Tools) -> Callable[[Block], Arrays]:
        """A digest of the value; samples without one are a stratum of their own."""
        import numpy as np

        def noted(block: Block) -> Arrays:
            values = [str(value).encode() for value in block.column(self.column).tolist()]
            spelt = {value: hashlib.sha256(value).digest()[:8] for value in set(values)}
            return {"group": np.frombuffer(b"".join(spelt[value] for value in values), "<u8")}

        return noted

    def compare(self, bucket: Arrays, tools: Tools) -> Verdict:
        """Those that are not drawn."""
        import numpy as np

        group = bucket["group"]
        by = np.lexsort((_hashes(self.seed, bucket["uid"]), group))
        _, first, sizes = np.unique(group[by], return_index=True, return_counts=True)
        rank = np.arange(len(group)) - np.repeat(first, sizes)
        stay = np.ceil(np.round(sizes * self.share, 9))
        stay = stay if self.most is None else np.minimum(stay, self.most)
        reasons = np.full(len(group), "not drawn", object)
        reasons[by[rank < np.repeat(stay, sizes)]] = ""
        return Verdict(reasons, counts={"strata": float(len(sizes))})


def _hashes(seed: int, uid: np.ndarray) -> np.ndarray:
    from orchestrator.data.draws import hashes

    return hashes(seed, "sample", uid)
