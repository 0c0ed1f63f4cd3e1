"""SemDeDup: images whose features nearly coincide, within a cluster (Abbas et al. 2023, arXiv 2303.09540).

A cluster's members stand in an order; one goes if its cosine with some earlier one is above 1 - eps, whether or not
that one stays. So of three of which neighbours are alike, the order decides what is left. `hard`, the paper's choice,
keeps what is far from the centre. Captions are not looked at. Similarities are computed in pieces, so that memory
grows with a cluster's size, and not with its square (NeMo Curator does it so, too).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from orchestrator.curation.operator import Arrays, GroupedOperator, Tools, Verdict
from orchestrator.recipe.schema import Embeddings, Ref

if TYPE_CHECKING:
    import numpy as np

    from orchestrator.curation.block import Block

AT_ONCE = 1024
"""Members of a cluster that are compared with all earlier ones at once."""


class SemDeDup(GroupedOperator):
    """Drops samples whose features nearly equal those of another one of their cluster (operator `cluster`)."""

    columns: ClassVar[tuple[str, ...]] = ("cluster", "cluster_distance")

    features: Ref[Embeddings]
    """Embeddings of these samples; samples without are left alone."""
    feature: Literal["image", "text"] = "image"
    """Which features are compared."""
    eps: Annotated[float, Field(gt=0, lt=2)] = 0.05
    """How far from 1 a cosine may be, and still be a duplicate's. Larger values drop more (LAION: 0.03 keeps 72%)."""
    order: Literal["hard", "easy", "random"] = "hard"
    """Who comes first in a cluster, and stays: the farthest from the centre, the nearest, or by chance."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides the order where it is by chance."""

    def keys(self, tools: Tools) -> Callable[[Block], Arrays]:
        """The cluster, and the distance from its centre."""
        import numpy as np

        return lambda block: {
            "group": block.column("cluster").astype(np.uint64),
            "distance": block.column("cluster_distance").astype(np.float32),
        }

    def compare(self, bucket: Arrays, tools: Tools) -> Verdict:
        """Those with an earlier one too near."""
        import numpy as np

        from orchestrator.curation.features import StoredFeatures
        from orchestrator.data.draws import hashes

        features, uid = StoredFeatures(tools.embeddings("features"), self.feature), bucket["uid"]
        rank = {"hard": -bucket["distance"], "easy": bucket["distance"]}.get(self.order)
        rank = hashes(self.seed, "semdedup", uid) if rank is None else rank
        reasons = np.full(len(uid), "", object)
        groups = np.unique(bucket["group"])
        for group in groups:
            members = np.flatnonzero(bucket["group"] == group)
            there, values = features.read(uid[members])
            members = members[there]
            order = np.argsort(rank[members], kind="stable")  # uids break ties: members are in their order
            unit = values[order] / np.linalg.norm(values[order], axis=1, keepdims=True).clip(1e-12)
            alike = closest_earlier(unit.astype(np.float32)) > 1 - self.eps
            reasons[members[order[alike]]] = f"features within {self.eps:g} of another one's"
        return Verdict(reasons, counts={"clusters": float(len(groups))})


def closest_earlier(unit: np.ndarray) -> np.ndarray:
    """For each of n unit vectors [n, d], its greatest cosine with an earlier one, and at least 0: [n] float32."""
    import numpy as np

    found = np.zeros(len(unit), np.float32)
    for start in range(0, len(unit), AT_ONCE):
        rows = np.arange(start, min(start + AT_ONCE, len(unit)))
        cosine = unit[rows] @ unit[: rows[-1] + 1].T
        cosine[np.arange(rows[-1] + 1)[None] >= rows[:, None]] = 0
        found[rows] = cosine.max(axis=1).clip(0)
    return found
