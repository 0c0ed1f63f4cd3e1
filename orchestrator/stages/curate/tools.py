"""`StageTools`: what the operators of a `curate` stage may open, by the names of their own fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.data.files import local_file
from orchestrator.store.artifacts import Handle, Store

if TYPE_CHECKING:
    import torch

    from orchestrator.data.dataset import Dataset
    from orchestrator.data.embeddings import StoredViews
    from orchestrator.data.preprocess import Preprocess, Tokenizer
    from orchestrator.models.interface import Model


@dataclass(frozen=True)
class StageTools:
    """Tools (curation/operator.py) of the operator at one place of a stage. Picklable; opens each thing once.

    Attributes:
        inputs, names, sources: the stage's (stages/base.py `StageContext`).
        store: where outside files were brought.
        place: of the operator among the stage's steps.
        gpu: whether models go onto one.
    """

    inputs: Mapping[str, Handle]
    names: Mapping[str, str]
    sources: Mapping[str, str | None]
    store: Store
    place: int
    gpu: bool
    _opened: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}

    @property
    def device(self) -> torch.device:
        import torch

        return torch.device("cuda" if self.gpu else "cpu")

    def model(self, name: str) -> tuple[Model, Preprocess, Tokenizer]:
        from orchestrator.stages.models import load_input

        key = self._key(name)
        return self._once(key, lambda: load_input(self.inputs, self.names, key, self.device))

    def embeddings(self, name: str) -> StoredViews:
        from orchestrator.data.embeddings import StoredViews

        return self._once(self._key(name), lambda: StoredViews.open(self.inputs[self._key(name)]))

    def dataset(self, name: str) -> Dataset:
        from orchestrator.data.dataset import Dataset

        return self._once(self._key(name), lambda: Dataset.open(self.inputs[self._key(name)]))

    def file(self, source: str) -> Path:
        return self._once(source, lambda: local_file(str(self.sources[source]), self.store))

    def _key(self, name: str) -> str:
        return f"steps.{self.place}.{name}"

    def _once(self, key: str, open: Any) -> Any:
        if key not in self._opened:
            self._opened[key] = open()
        return self._opened[key]
