"""Models that a stage reads: results of other stages, and external ones, opened the same way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from orchestrator.models import artifact
from orchestrator.models.external import load_external
from orchestrator.store.artifacts import Handle

if TYPE_CHECKING:
    import torch

    from orchestrator.data.preprocess import Preprocess, Tokenizer
    from orchestrator.models.interface import Model


def load_input(
    inputs: Mapping[str, Handle], names: Mapping[str, str], key: str, device: torch.device | str
) -> tuple[Model, Preprocess, Tokenizer]:
    """The model at a reference path (`teacher`, `models.0`), in eval mode; external ones are named by reference."""
    if key in inputs:
        return artifact.load(inputs[key], device)
    return load_external(names[key], str(device))
