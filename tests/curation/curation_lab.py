"""What curation tests share: reference cases, embeddings of given features, tools over them, operators over blocks."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "data"))

from orchestrator.curation.block import Block
from orchestrator.curation.operator import FittedOperator, Verdict
from orchestrator.data import embeddings
from orchestrator.data.captions import CaptionPolicy
from orchestrator.data.dataset import IDENTITY
from orchestrator.data.embeddings import About, Array, StoredViews
from orchestrator.data.preprocess import Preprocess, Tokenizer
from orchestrator.data.transforms import Augment

REFERENCE = Path(__file__).parent.parent / "reference"


@cache
def _cases(family: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    cases = json.loads((REFERENCE / family / "cases.json").read_text())["cases"]
    with np.load(REFERENCE / family / "cases.npz") as arrays:
        return {case["name"]: case for case in cases}, dict(arrays)


def tldr(name: str) -> dict[str, Any]:
    """Inputs and expected values of a case, by name."""
    cases, arrays = _cases("tldr")
    entries = {**cases[name]["inputs"], **cases[name]["expected"]}
    return {key: entry["value"] if "value" in entry else arrays[entry["npz"]] for key, entry in entries.items()}


def metaclip(name: str) -> dict[str, Any]:
    """A case whose name begins so."""
    cases = json.loads((REFERENCE / "concept_frequency" / "cases.json").read_text())
    return next(case for full, case in cases.items() if full.startswith(f"{name}_"))


def identities(count: int, seed: int = 0) -> np.ndarray:
    """Ids as digests are: 128 random bits each."""
    return np.random.default_rng(seed).integers(0, 256, (count, 16), np.uint8).view(IDENTITY)[:, 0]


def block(uids: np.ndarray, **made: Any) -> Block:
    """Samples with these ids and columns; there is nothing else of them."""
    return Block(Ids(uids), made)


class Ids:
    """A data set of nothing but ids."""

    name, columns = "ids", ("uid",)

    def __init__(self, uids: np.ndarray, of: int | None = None) -> None:
        self._uids, self.num_rows = uids, of or len(uids)

    def __len__(self) -> int:
        return len(self._uids)

    def column(self, name: str) -> np.ndarray:
        assert name == "uid"
        return self._uids

    def take(self, rows: np.ndarray) -> Ids:
        return Ids(self._uids[rows], self.num_rows)


def store_features(out: Path, uids: np.ndarray, **arrays: np.ndarray) -> StoredViews:
    """Embeddings of the evaluation view: `image`, `text` or `codes` [n, values], in the order of `uids`."""
    out.mkdir(parents=True)
    order = np.argsort(uids, order=("high", "low"))
    about = About(
        "m" * 64, "d" * 64, None, 0, 0, Augment(), CaptionPolicy(), Preprocess(32), Tokenizer(context_length=24), 50.0
    )
    written = []
    for name, values in arrays.items():
        kind = np.dtype("<u2") if name == "codes" else np.dtype("<f4")
        written.append(Array(out, name, (len(values), 1, values.shape[1]), kind))
        written[-1].values[:, 0] = values[order]
    embeddings.finish(out, about, uids[order].view(np.uint8).reshape(-1, 16), written)
    return StoredViews.open(out)


def tools(**fields: Any) -> SimpleNamespace:
    """Tools that open these embeddings by their field's name."""
    return SimpleNamespace(embeddings=fields.__getitem__)


def fit_and_judge(operator: FittedOperator, blocks: list[Block], tools: Any) -> tuple[Any, list[Verdict]]:
    """A fitted operator over blocks, as the stage has it: what was fitted, and what is said of each."""
    observe = operator.observe(tools)
    fitted = operator.fit(iter([observe(one) for one in blocks]), tools)
    judge = operator.open(fitted, tools)
    return fitted, [judge(one) for one in blocks]
