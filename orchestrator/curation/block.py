"""`Block`: some neighbouring samples of a data set as operators see them, with the columns that operators before made.

It reads what is asked for and nothing else: most operators never touch an image. `decoded` is for those that do: a
picture that cannot be decoded is one that is left out, with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from orchestrator.data.bad import BadSample
from orchestrator.data.dataset import Caption, Dataset
from orchestrator.errors import UserError

T = TypeVar("T")


class Block:
    """Samples, in row order, each once.

    Args:
        data: these samples.
        made: columns that operators made of them, [n] each.
        repeats: how often each is there [n]; None: once.
    """

    def __init__(self, data: Dataset, made: Mapping[str, Any], repeats: np.ndarray | None = None) -> None:
        self.data = data
        self.made = dict(made)
        self.repeats = repeats

    def __len__(self) -> int:
        return len(self.data)

    @cached_property
    def uid(self) -> np.ndarray:
        """Ids [n] as pairs of numbers (data/dataset.py `IDENTITY`)."""
        return self.data.column("uid")

    def column(self, name: str) -> np.ndarray:
        """A column [n], of objects where values are lists; UserError naming those there are if it is not one."""
        if name == "caption":
            return np.array([captions[0].text for captions in self.captions], object)
        if name in self.made:
            made = self.made[name]
            return np.fromiter(made, object, len(made)) if isinstance(made, list) else np.asarray(made)
        if name not in self.data.columns:
            there = ", ".join((*self.data.columns, *self.made))
            raise UserError(f"'{self.data.name}' has no column '{name}'", f"its columns: {there}")
        return self.data.column(name)

    @cached_property
    def captions(self) -> Sequence[tuple[Caption, ...]]:
        """All captions of each sample, the primary one first."""
        if "captions" in self.made:
            return self.made["captions"]
        return self.data.captions(range(len(self)))

    @cached_property
    def images(self) -> list[bytes]:
        """Encoded images, each checked against its digest."""
        return self.data.images(range(len(self)))

    def decoded(self, decode: Callable[[bytes], T]) -> tuple[list[T | None], np.ndarray]:
        """What `decode` makes of each image, None where it raises BadSample, and the reasons [n] of those, else ""."""
        found: list[T | None] = []
        reasons = np.full(len(self), "", object)
        for place, data in enumerate(self.images):
            try:
                found.append(decode(data))
            except BadSample as bad:
                found.append(None)
                reasons[place] = bad.reason
        return found, reasons

    def where(self, keep: np.ndarray) -> Block:
        """The samples [m] at these places, in the same order."""
        made = {
            name: [values[place] for place in keep] if isinstance(values, list) else values[keep]
            for name, values in self.made.items()
        }
        return Block(self.data.take(keep), made, None if self.repeats is None else self.repeats[keep])
