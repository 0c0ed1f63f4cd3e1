"""Limits of a score: samples below the least or above the greatest value of a column are left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from orchestrator.curation.operator import RowOperator, Verdict

if TYPE_CHECKING:
    from orchestrator.curation.block import Block


class Threshold(RowOperator):
    """Keeps samples whose value in a column lies within limits; those without a value are left out."""

    column: str
    """The column: of the data, or made by an operator before (`clip_score`, `match_score`, `cluster_distance`)."""
    min: float | None = None
    """Least value that stays."""
    max: float | None = None
    """Greatest value that stays."""

    @model_validator(mode="after")
    def _limited(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("threshold needs `min`, `max` or both")
        return self

    def reads(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    def judge(self, block: Block) -> Verdict:
        """Those out of the limits."""
        import numpy as np

        values = block.column(self.column).astype(np.float64)
        reasons = np.full(len(values), "", object)
        reasons[np.isnan(values)] = f"no {self.column}"
        if self.min is not None:
            reasons[values < self.min] = f"{self.column} under {self.min:g}"
        if self.max is not None:
            reasons[values > self.max] = f"{self.column} over {self.max:g}"
        return Verdict(reasons)
