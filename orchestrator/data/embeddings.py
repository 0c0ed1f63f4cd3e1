"""`Embeddings`: what a model makes of a data set's views, computed once and looked up by sample and view.

Files of an Embeddings artifact, whose samples are in uid order:

    embeddings.json   format, model and data (identities), split, count, views, seed, augment, captions; preprocess,
                      tokenizer and scale of the model; array -> {file, rows, facets, dims, dtype, normalised}
    uid.npy           [count, 16] uint8, sorted
    image.npy         [count * views, facets, dims]: sample i's view k at row i * views + k
    codes.npy         [count * views, 1, n] uint16: the image's codebook entries, in the same rows
    text.npy          [distinct captions, facets, dims], in the order in which samples and views first show them
    text_rows.npy     [count * views] uint32: the row of text.npy for each sample's view

A view is a number: the augmentation and the caption that the draws (seed, purpose, view, uid) choose, so a student
that makes the pixels anew sees what its teacher saw. `views: 0` is the one view of evaluation: centre crop, first
caption. Any array may be missing: a sentence encoder leaves text alone. Several facets describe one image or caption.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.data import TRANSFORMS_VERSION
from orchestrator.data.captions import CaptionPolicy
from orchestrator.data.preprocess import Preprocess, Tokenizer
from orchestrator.data.transforms import Augment
from orchestrator.errors import StageError

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.store.artifacts import Handle

FORMAT = 1
DESCRIPTION = "embeddings.json"
UIDS = "uid.npy"
DTYPES: dict[str, np.dtype] = {"fp16": np.dtype("<f2"), "fp32": np.dtype("<f4"), "codes": np.dtype("<u2")}
KEY = np.dtype("S16")
"""A uid's 16 bytes as one value, which sorts as its hex digits do."""


@dataclass(frozen=True)
class About:
    """What embeddings were made of, and how: all that a student needs to see the same views.

    Attributes:
        model, data: identities (a stage's fingerprint, or what identifies an external model).
        split: value of the data's column `split`, or None for all samples.
        views: views a sample, drawn with `seed`, `augment` and `captions`; 0 is the evaluation view.
        preprocess, tokenizer: the model's.
        scale: the multiplier of similarities that the model was trained with; None if it has none.
    """

    model: str
    data: str
    split: str | None
    views: int
    seed: int
    augment: Augment
    captions: CaptionPolicy
    preprocess: Preprocess
    tokenizer: Tokenizer
    scale: float | None

    @property
    def stored_views(self) -> int:
        """Views a sample that are in the arrays."""
        return max(1, self.views)


class Array:
    """One array being written: a file of its final size, filled row by row in any order. OSError if the disk has no
    room for it.

    `shape` is (rows, facets, dims), `dtype` float16, float32 or, of codes, uint16.
    `rows` [count * views]: the array's row of each sample's view; None where each has its own.
    """

    def __init__(
        self, out: Path, name: str, shape: tuple[int, ...], dtype: np.dtype, rows: np.ndarray | None = None
    ) -> None:
        self.name, self.rows = name, rows
        path = out / f"{name}.npy"
        self.values = np.lib.format.open_memmap(path, "w+", dtype, shape)
        with path.open("r+b") as file:  # a write to a mapped page for which the disk has no room ends the process
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)

    def __len__(self) -> int:
        return len(self.values)

    def close(self, out: Path) -> dict[str, Any]:
        """Finish the files; this array's part of embeddings.json."""
        self.values.flush()
        if self.rows is not None:
            np.save(out / f"{self.name}_rows.npy", self.rows.astype("<u4"))
        _, facets, dims = self.values.shape
        return {
            "file": f"{self.name}.npy",
            "rows": None if self.rows is None else f"{self.name}_rows.npy",
            "facets": facets,
            "dims": dims,
            "dtype": self.values.dtype.name,
            "normalised": self.values.dtype.kind == "f",
        }


def finish(out: Path, about: About, uids: np.ndarray, arrays: Sequence[Array]) -> None:
    """Write everything but the features: ids [n, 16] uint8 in order, rows, and the description."""
    np.save(out / UIDS, np.ascontiguousarray(uids))
    description = {
        "format": FORMAT,
        "transforms": TRANSFORMS_VERSION,
        "count": len(uids),
        **asdict(about),
        "augment": about.augment.model_dump(mode="json"),
        "captions": about.captions.model_dump(mode="json"),
        "arrays": {array.name: array.close(out) for array in arrays},
    }
    (out / DESCRIPTION).write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")


class StoredViews:
    """Opened Embeddings: the features of any samples' views, from memory-mapped files. Thread-safe.

    `about` says which views they are; `num_views`, `seed`, `augment` and `captions` are its.
    """

    def __init__(self, about: About, uids: np.ndarray, arrays: Mapping[str, tuple[np.ndarray, np.ndarray | None]]):
        self.about = about
        self.num_views, self.seed = about.views, about.seed
        self.augment, self.captions = about.augment, about.captions
        self._keys = np.ascontiguousarray(uids).view(KEY)[:, 0]
        self._arrays = arrays

    @classmethod
    def open(cls, source: Handle | Path) -> StoredViews:
        """Open a finished artifact, or a folder with its files; StageError if this version cannot read them."""

        def path(name: str) -> Path:
            return source / name if isinstance(source, Path) else source.local(name)

        read = json.loads(path(DESCRIPTION).read_text())
        if read["format"] != FORMAT or read["transforms"] != TRANSFORMS_VERSION:
            raise StageError(
                f"embeddings of format {read['format']}, made of views of version {read['transforms']}; "
                f"this version of orch has {FORMAT} and {TRANSFORMS_VERSION}",
                "Compute them again: submit the recipe with its `embed` stage.",
            )
        arrays = {
            name: (_mapped(path(array["file"])), None if array["rows"] is None else _mapped(path(array["rows"])))
            for name, array in read["arrays"].items()
        }
        return cls(_about(read), np.load(path(UIDS)), arrays)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._keys)

    @property
    def names(self) -> tuple[str, ...]:
        """The arrays there are, of `image`, `text` and `codes`."""
        return tuple(self._arrays)

    def holds(self, uids: np.ndarray) -> np.ndarray:
        """Which of these samples are there, [n] bool: ids [n, 16] bytes, or pairs of numbers (`IDENTITY`)."""
        return self._find(uids)[1]

    def require(self, uids: np.ndarray) -> None:
        """StageError unless all these samples are there: ids [n, 16] bytes, or pairs of numbers (`IDENTITY`)."""
        self._places(uids)

    def array(self, name: str) -> np.ndarray:
        """One array as it lies in its file, mapped: [rows, facets, dims]. StageError if these embeddings lack it."""
        return self._array(name)[0]

    def rows(self, uids: np.ndarray, name: str, view: int = 0) -> np.ndarray:
        """Rows of `array(name)` that hold one view of some samples: [n] int64, found by bisection.

        `uids` are ids [n, 16] bytes, or pairs of numbers (`IDENTITY`). Read a few at a time, in ascending order, an
        array of any size costs the memory of what is read. StageError naming samples that the embeddings lack.
        """
        at = self._places(uids) * self.about.stored_views + view
        rows = self._array(name)[1]
        return at if rows is None else rows[at].astype(np.int64)

    def features(self, uids: Sequence[str], views: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """Each sample's view, by array: [B, dims], or [B, facets, dims] of several; float32, codes int64.

        `views` are below `num_views`, one a sample. StageError naming samples that the embeddings lack.
        """
        import torch

        wanted = np.frombuffer(bytes.fromhex("".join(uids)), np.uint8).reshape(len(uids), 16)
        at = self._places(wanted) * self.about.stored_views + np.asarray(views)
        found = {}
        for name, (values, rows) in self._arrays.items():
            features = values[at if rows is None else rows[at]]
            features = features.astype(np.float32 if features.dtype.kind == "f" else np.int64)
            found[name] = torch.from_numpy(features[:, 0] if features.shape[1] == 1 else features)
        return found

    def _array(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        if name not in self._arrays:
            raise StageError(
                f"these embeddings have no '{name}'; they have: {', '.join(self._arrays)}",
                "`of` and `output` of the `embed` stage decide what is stored.",
            )
        return self._arrays[name]

    def _places(self, uids: np.ndarray) -> np.ndarray:
        """Number of each sample among those stored."""
        places, there = self._find(uids)
        if not there.all():
            missing = np.flatnonzero(~there)
            named = ", ".join(uids[place].tobytes().hex() for place in missing[:3].tolist())
            raise StageError(
                f"the embeddings have no features of {missing.size} of {len(uids)} samples "
                f"({named}{', ...' if missing.size > 3 else ''}): they were made of another data set",
                "Give the `embed` stage the same `data` as the stage that reads it.",
            )
        return places

    def _find(self, uids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number of each sample among those stored, and whether it is there."""
        keys = np.ascontiguousarray(uids).view(np.uint8).reshape(len(uids), 16).view(KEY)[:, 0]
        if not len(self._keys):
            return np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return places, self._keys[places] == keys


def _mapped(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")


def _about(read: Mapping[str, Any]) -> About:
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in read["preprocess"].items()}
    return About(
        **{name: read[name] for name in ("model", "data", "split", "views", "seed", "scale")},
        augment=Augment.model_validate(read["augment"]),
        captions=CaptionPolicy.model_validate(read["captions"]),
        preprocess=Preprocess(**settings),
        tokenizer=Tokenizer(**read["tokenizer"]),
    )
