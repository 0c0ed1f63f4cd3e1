"""The contract of a curation operator: columns in, a reason for each sample that is left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from orchestrator.recipe.schema import Config

if TYPE_CHECKING:
    import numpy as np


class OperatorConfig(Config):
    """Base of all operators. What it decides may depend on the set of samples, never on their order."""

    columns: ClassVar[tuple[str, ...]] = ()
    """Columns of the Dataset it looks at (data/dataset.py, `Dataset.column`)."""

    def judge(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Why each sample is dropped: [n] objects, the empty string where it is kept. Columns are [n], row by row."""
        raise NotImplementedError
