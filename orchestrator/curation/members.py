"""Set operations: samples that other data sets have, or have not. Union, intersection and difference of selections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from orchestrator.curation.operator import Judge, RowOperator, Tools, Verdict
from orchestrator.recipe.schema import Dataset, Ref

if TYPE_CHECKING:
    from orchestrator.curation.block import Block


class Members(RowOperator):
    """Keeps the samples that are in any, in all, or in none of some other data sets, by their ids."""

    of: Annotated[list[Ref[Dataset]], Field(min_length=1)]
    """The other data sets, for instance several curations of the same pool."""
    keep: Literal["any", "all", "none"] = "all"
    """`any`: the union, as far as the samples are here; `all`: the intersection; `none`: the difference."""

    def open(self, tools: Tools) -> Judge:
        """With the other sets' ids, sorted; 16 bytes each."""
        import numpy as np

        others = [np.unique(tools.dataset(f"of.{place}").column("uid").view("S16")) for place in range(len(self.of))]

        def judge(block: Block) -> Verdict:
            mine = np.ascontiguousarray(block.uid).view("S16")
            found = np.stack([np.isin(mine, other) for other in others])
            stays = {"any": found.any(axis=0), "all": found.all(axis=0), "none": ~found.any(axis=0)}[self.keep]
            out = {"any": "in none of the others", "all": "not in all of the others", "none": "in another"}[self.keep]
            return Verdict(np.where(stays, "", out).astype(object))

        return judge
