"""Balance: thin out what is common, keep what is rare (MetaCLIP, arXiv 2309.16671, algorithm 1).

An entry that `count` samples of the whole data name has probability min(1, cap / count). Each sample draws once for
each of its entries and stays if any draw succeeds: P = 1 - product(1 - p). So samples of rare entries all stay, and
those without any entry go. A draw is a function of (seed, uid, entry).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field, model_validator

from orchestrator.curation.operator import Arrays, FittedOperator, Judge, Tools, Verdict

if TYPE_CHECKING:
    import numpy as np

    from orchestrator.curation.block import Block


class Balance(FittedOperator):
    """Keeps about as many samples of each common concept, and all of the rare ones; needs `tag_concepts`."""

    columns: ClassVar[tuple[str, ...]] = ("concepts",)

    cap: Annotated[int, Field(ge=1)] | None = None
    """Samples of a concept from which on it is thinned out (MetaCLIP: 20,000 for 400 million of 1.6 billion pairs)."""
    tail: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Instead: the cap follows from the share of all matches that belong to rarer concepts (MetaCLIP 2 carries the
    share of one language over to the others: 0.06)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides the draws."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.cap is None) == (self.tail is None):
            raise ValueError("balance needs `cap` or `tail`, one of them")
        return self

    def observe(self, tools: Tools) -> Callable[[Block], Arrays]:
        """How many of a block's samples name each concept that is there."""
        import numpy as np

        from orchestrator.curation.concepts import flat

        def seen(block: Block) -> Arrays:
            entry, count = np.unique(flat(block.column("concepts"))[1], return_counts=True)
            return {"entry": entry, "count": count}

        return seen

    def fit(self, seen: Iterator[Arrays], tools: Tools) -> Arrays:
        """Counts of all concepts, and the cap."""
        import numpy as np

        counts = np.zeros(0, np.int64)
        for block in seen:
            entry = block["entry"]
            if len(entry) and entry[-1] >= len(counts):
                counts = np.pad(counts, (0, int(entry[-1]) + 1 - len(counts)))
            counts[entry] += block["count"]
        cap = self.cap if self.tail is None else cap_of(self.tail, counts)
        return {"counts": counts, "cap": np.array([cap], np.int64)}

    def facts(self, fitted: Arrays) -> Mapping[str, float]:
        """How many concepts there are, and how many are thinned out."""
        counts, cap = fitted["counts"], int(fitted["cap"][0])
        return {
            "concepts": int((counts > 0).sum()),
            "concepts above the cap": int((counts > cap).sum()),
            "cap": cap,
            "matches": int(counts.sum()),
            "share of matches of rarer concepts": tail_of(cap, counts),
        }

    def open(self, fitted: Arrays, tools: Tools) -> Judge:
        """Draws."""
        import numpy as np

        from orchestrator.curation.concepts import flat
        from orchestrator.data.draws import hashes

        chances = probabilities(fitted["counts"], int(fitted["cap"][0]))

        def judge(block: Block) -> Verdict:
            sample, entry = flat(block.column("concepts"))
            draws = (hashes(self.seed, "balance", block.uid[sample], entry) >> np.uint64(11)) * 2.0**-53
            reasons = np.full(len(block), "no concept", object)
            reasons[sample] = "not drawn, its concepts are common"
            reasons[sample[draws < chances[entry]]] = ""
            lost = np.ones(len(block))
            np.multiply.at(lost, sample, 1 - chances[entry])
            return Verdict(reasons, counts={"expected to stay": float((1 - lost).sum())})

        return judge


def probabilities(counts: np.ndarray, cap: float) -> np.ndarray:
    """P that one match with a concept keeps a sample: min(1, cap / count) of each concept's count [C]."""
    import numpy as np

    return np.minimum(1.0, cap / np.maximum(counts, 1))


def tail_of(cap: float, counts: np.ndarray) -> float:
    """Share of all matches that belong to concepts with fewer than `cap` (MetaCLIP 2, `t_to_p`)."""
    return float(counts[counts < cap].sum() / max(1, counts.sum()))


def cap_of(tail: float, counts: np.ndarray) -> int:
    """The count at which the cumulated share of the rarest concepts is nearest to `tail` (MetaCLIP 2, `p_to_t`)."""
    import numpy as np

    rising = np.sort(counts[counts > 0])
    if not len(rising):
        return 1
    shares = np.cumsum(rising) / rising.sum()
    return int(rising[np.abs(shares - tail).argmin()])
