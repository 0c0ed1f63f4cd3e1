"""A Model on disk: `model.json` (what it is) and `weights.safetensors` (its tensors), the same bytes for the same
model.

Loading reads JSON and safetensors and nothing else: no pickle, and of all classes only models of this package. The
files need nothing beside them; what one process saved, any other loads to the same outputs.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from orchestrator.data.preprocess import Preprocess, Tokenizer
from orchestrator.errors import StageError
from orchestrator.models.count import count
from orchestrator.models.interface import Model
from orchestrator.store.artifacts import Handle

STRUCTURE = "model.json"
WEIGHTS = "weights.safetensors"
FORMAT = 1
PACKAGE = "orchestrator.models."


def save(
    model: Model,
    preprocess: Preprocess,
    tokenizer: Tokenizer,
    directory: Path,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write `model.json` and `weights.safetensors` into an existing directory, with `weights` in place of its own."""
    source = model.state_dict() if weights is None else weights
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in source.items()}
    sizes = count(model)
    description = {
        "format": FORMAT,
        "structure": model.structure(),
        "capabilities": sorted(model.capabilities),
        "preprocess": asdict(preprocess),
        "tokenizer": asdict(tokenizer),
        "parameters": asdict(sizes) | {"without_token_table": sizes.without_token_table},
        "tensors": {name: {"shape": list(t.shape), "dtype": _dtype(t)} for name, t in sorted(tensors.items())},
    }
    (directory / STRUCTURE).write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")
    save_file(tensors, directory / WEIGHTS)


def load(source: Handle | Path | str, device: torch.device | str = "cpu") -> tuple[Model, Preprocess, Tokenizer]:
    """A saved model in eval mode, with its preprocessing and tokenizer, from an artifact or a directory.

    StageError if the files are not a model's, or are of a kind this version does not know.
    """
    description = json.loads(_path(source, STRUCTURE).read_text())
    if description.get("format") != FORMAT:
        raise StageError(
            f"model.json has format {description.get('format')!r}; this version reads {FORMAT}",
            "Use the version of orch that wrote it, or train the model again.",
        )
    model = _class(description["structure"]["class"]).build(description["structure"]["config"])
    try:
        weights = load_file(_path(source, WEIGHTS))
    except SafetensorError as error:
        raise StageError(
            f"{source}: {WEIGHTS} is not in the safetensors format: {error}",
            "Convert the weights: pickled ones (.pt, .bin) are not read, for reading them may run code.",
        ) from None
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise StageError(f"weights.safetensors does not fit model.json: {', '.join(wrong[:3])}, {len(wrong)} in all")
    model.load_state_dict(weights)
    return model.to(device).eval(), _preprocess(description["preprocess"]), Tokenizer(**description["tokenizer"])


def _path(source: Handle | Path | str, name: str) -> Path:
    if isinstance(source, Handle):
        return source.local(name)
    path = Path(source) / name
    if not path.is_file():
        raise StageError(
            f"{source} is not a model: it has no {name}", f"A model is a folder of {STRUCTURE}, {WEIGHTS}."
        )
    return path


def _class(name: str) -> type[Model]:
    """The model class of that "module:Class" name, of this package only."""
    module, _, attribute = name.partition(":")
    found = getattr(importlib.import_module(module), attribute, None) if module.startswith(PACKAGE) else None
    if not (isinstance(found, type) and issubclass(found, Model)):
        raise StageError(f"model.json asks for the class '{name}', which is not a model of {PACKAGE}*")
    return found


def _preprocess(values: dict[str, Any]) -> Preprocess:
    """JSON has no tuples."""
    settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return Preprocess(**settings)


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
