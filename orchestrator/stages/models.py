"""Models that a stage reads: results of other stages, and external ones, opened the same way."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import UserError
from orchestrator.models import artifact
from orchestrator.models.external import is_folder, load_external
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
    reference = names[key]
    if is_folder(reference) and not Path(reference).expanduser().is_dir():
        raise UserError(
            f"the model '{reference}' of `{key}` cannot be read by the worker on node '{socket.gethostname()}'",
            "put it where every node sees it, or make it a stage's result in the store",
        )
    return load_external(reference, str(device))


def distinct(names: Sequence[str]) -> list[str]:
    """The names, numbered where one is there twice: `teacher#1`, `teacher#2`."""
    return [
        name if names.count(name) == 1 else f"{name}#{names[:place].count(name) + 1}"
        for place, name in enumerate(names)
    ]
