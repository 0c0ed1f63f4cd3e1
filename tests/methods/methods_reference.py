"""The stored numbers of official programs, by case name."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent.parent / "reference"


@cache
def _files(family: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    cases = json.loads((FOLDER / family / "cases.json").read_text())["cases"]
    with np.load(FOLDER / family / "cases.npz") as arrays:
        return cases, dict(arrays)


def tinyclip(case: str) -> dict[str, Any]:
    """Arrays as float64 tensors and scalars of one TinyCLIP case, by name."""
    cases, arrays = _files("tinyclip")
    scalars = next(entry["scalars"] for entry in cases if entry["case"] == case)
    found = {name.partition("/")[2]: tensor(a) for name, a in arrays.items() if name.startswith(f"{case}/")}
    return found | scalars


def open_clip(case: str) -> dict[str, Tensor]:
    """Arrays as float64 tensors of one open_clip case, by `in/...`, `out/...`, `grad/...`."""
    arrays = _files("open_clip")[1]
    return {name.removeprefix(f"{case}/"): tensor(a) for name, a in arrays.items() if name.startswith(f"{case}/")}


def tldr(case: str) -> dict[str, Any]:
    """Arrays as tensors and scalars of one TL;DR case, by `inputs/...`, `expected/...`, `grads/...`."""
    cases, arrays = _files("tldr")
    entry = next(entry for entry in cases if entry["name"] == case)
    found: dict[str, Any] = {}
    for group in ("inputs", "expected", "grads"):
        for name, value in entry.get(group, {}).items():
            found[f"{group}/{name}"] = value["value"] if "value" in value else torch.from_numpy(arrays[value["npz"]])
    return found


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(array)).double()
