"""A share of each cluster: what is common is thinned out, and no cluster is lost (TL;DR, section 3.2).

Of n samples of a cluster, ceil(ratio n) stay, so at least one. TL;DR's paper chooses uniformly; its release takes
every k-th member (`codebook_cluster.py`). Its 0.67 million pairs of CC3M are half of each cluster and of these the
better half by image-text matching: `ratio: 0.5` beside `match_score` and `keep_top` (recipes/papers/tldr_cc3m.yaml).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from orchestrator.curation.operator import Arrays, GroupedOperator, Tools, Verdict

if TYPE_CHECKING:
    import numpy as np

    from orchestrator.curation.block import Block

SIZES = {1: "1", 2: "2 to 9", 10: "10 to 99", 100: "100 to 999", 1000: "1,000 and more"}
"""Least members -> how the report calls a cluster of so many."""


class SelectPerCluster(GroupedOperator):
    """Keeps the same share of every cluster, and at least one sample of it."""

    columns: ClassVar[tuple[str, ...]] = ("cluster",)

    ratio: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of each cluster that stays, rounded up."""
    choice: Literal["uniform", "stride"] = "uniform"
    """`uniform`: by chance. `stride`: members at equal distances in the order of ids, as the release does."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides what `uniform` chooses."""

    def keys(self, tools: Tools) -> Callable[[Block], Arrays]:
        """The cluster."""
        import numpy as np

        return lambda block: {"group": block.column("cluster").astype(np.uint64)}

    def compare(self, bucket: Arrays, tools: Tools) -> Verdict:
        """Those that are not chosen."""
        import numpy as np

        from orchestrator.data.draws import hashes

        cluster, order = bucket["group"], None
        if self.choice == "uniform":
            order = hashes(self.seed, "select per cluster", bucket["uid"])
        reasons = np.full(len(cluster), "not chosen in its cluster", object)
        reasons[chosen(cluster, self.ratio, order)] = ""
        sizes = np.unique(cluster, return_counts=True)[1]
        return Verdict(reasons, counts={"clusters": len(sizes), **_size_counts(sizes)})


def chosen(cluster: np.ndarray, ratio: float, order: np.ndarray | None = None) -> np.ndarray:
    """Places of the samples that stay, cluster by cluster; `cluster` is a number a sample [n].

    By their `order` [n] the first ceil(ratio n) of each cluster stay; without, those at equal distances in the order
    they have: with a ratio of 1/k each k-th from the first on.
    """
    import numpy as np

    by = np.lexsort((np.arange(len(cluster)) if order is None else order, cluster))
    _, first, sizes = np.unique(cluster[by], return_index=True, return_counts=True)
    rank = np.arange(len(cluster)) - np.repeat(first, sizes)
    if order is not None:
        return by[rank < np.repeat(np.ceil(np.round(sizes * ratio, 9)), sizes)]
    stays = np.ceil(np.round((rank + 1) * ratio, 9)) > np.ceil(np.round(rank * ratio, 9))
    return by[stays]


def _size_counts(sizes: np.ndarray) -> dict[str, float]:
    """How many clusters have how many members."""
    import numpy as np

    found = np.bincount(np.searchsorted(list(SIZES), sizes, side="right") - 1, minlength=len(SIZES))
    return {f"clusters of {name}": int(count) for name, count in zip(SIZES.values(), found) if count}
