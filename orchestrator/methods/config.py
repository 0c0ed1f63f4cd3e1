"""What all training methods' configurations share: which code runs them, what they need, and what their models can do.
No torch.
"""

from __future__ import annotations

from typing import ClassVar, Self

from orchestrator.models.config import ModelSpec
from orchestrator.recipe.schema import Config


class MethodConfig(Config):
    """Base of every method's options. Class attributes are the method's contract; fields are the recipe's."""

    runner: ClassVar[str] = ""
    """ "module:Class" of the `Method` (training/method.py), imported where the training runs."""
    teacher: ClassVar[bool] = False
    """Whether it distils from a teacher: such a method belongs to `distill` stages, any other to the rest."""

    def capabilities(self, model: ModelSpec) -> frozenset[str]:
        """What the Model that comes out of training this shape can do. Default: what the shape can do."""
        return model.capabilities

    def check(self, model: ModelSpec) -> None:
        """ValueError where it cannot train a model of this shape. Default: it can."""

    def smoke(self) -> Self:
        """These options for a CPU-sized model of the same kind (`ModelSpec.smoke`). Default: the same."""
        return self
