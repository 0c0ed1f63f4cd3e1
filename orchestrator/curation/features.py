"""What is clustered of a sample: its codes as numbers or as a histogram, or a model's feature, reduced and normalised.

`StoredFeatures` reads them from Embeddings; a `Reduction` is fitted to a sample of them: weights of codes by how rare
they are, principal components, rows scaled to length 1 (TL;DR, released code `fast_cluster.preprocess_features`, which
scales components to equal variance: each over the root of its eigenvalue of the covariance with 1/n). What is fitted
are arrays, kept beside the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from orchestrator.errors import UserError

if TYPE_CHECKING:
    from orchestrator.data.embeddings import StoredViews

Feature = Literal["code_histogram", "code_ids", "image", "text"]
PIECE = 1 << 22
"""Values made at once."""
NEGLIGIBLE = 1e-10
"""A component whose variance is so small a part of the largest is rounding: it is left out."""


@dataclass(frozen=True)
class StoredFeatures:
    """One feature of samples, as embeddings hold it: their first view."""

    stored: StoredViews
    feature: Feature

    def read(self, uids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of these samples (`IDENTITY` [n]) have one, [n] bool, and theirs [m, values], as stored.

        An image that could not be decoded has the feature 0: it has none.
        """
        there = self.stored.holds(uids)
        array = self.feature if self.feature in ("image", "text") else "codes"
        values = self.stored.array(array)
        found = np.asarray(values[self.stored.rows(uids[there], array)])
        if array == "codes":
            return there, found.reshape(len(found), values.shape[1] * values.shape[2])
        mean = found.astype(np.float32).mean(axis=1)
        some = mean.any(axis=1)
        there[there] = some
        return there, mean[some]


@dataclass(frozen=True)
class Reduction:
    """From features as stored to what is clustered.

    Attributes:
        weights: of each code of a histogram [K]; empty where features are taken as they are.
        mean, components: [d] and [d, dims]; empty without principal components.
    """

    weights: np.ndarray
    mean: np.ndarray
    components: np.ndarray

    @classmethod
    def fit(
        cls, raw: np.ndarray, dims: int | None, histogram: bool = False, idf: bool = False, whiten: bool = True
    ) -> Self:
        """Of a sample of features as stored [n, values].

        Args:
            dims: principal components; None: none. UserError if they are more than a feature has dimensions.
            histogram: values are codes to be counted.
            idf: a code in few samples counts more, by log(n / samples that have it).
            whiten: scale components to equal variance.
        """
        nothing = np.zeros(0)
        plain = cls(_rarity(raw, idf) if histogram else nothing, nothing, nothing)
        if dims is None:
            return plain
        size = plain.size(raw)
        if dims > size:
            raise UserError(
                f"cluster: {dims} principal components (pca) are more than the {size} dimensions of the feature",
                f"set `pca` to {size} at most, or to null; a captioner with more `pieces` gives longer lists of codes",
            )
        mean = sum(piece.sum(axis=0) for piece in plain._pieces(raw)) / len(raw)
        spread = sum((piece - mean).T @ (piece - mean) for piece in plain._pieces(raw)) / len(raw)
        variances, axes = np.linalg.eigh(spread)
        largest = np.flatnonzero(variances > NEGLIGIBLE * variances[-1])[::-1][:dims]
        scales = np.sqrt(variances[largest]) if whiten else 1.0
        return cls(plain.weights, mean, axes[:, largest] / scales)

    def size(self, raw: np.ndarray) -> int:
        """Dimensions of a feature before its reduction."""
        return len(self.weights) or raw.shape[1]

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        """Features as stored [n, values] to rows of length 1, [n, d] float32 (of length 0, where nothing is left)."""
        reduced = []
        for piece in self._pieces(raw):
            if self.components.size:
                piece = (piece - self.mean) @ self.components
            reduced.append(
                (piece / np.maximum(np.linalg.norm(piece, axis=1, keepdims=True), 1e-12)).astype(np.float32)
            )
        width = self.components.shape[1] if self.components.size else self.size(raw)
        return np.concatenate(reduced) if reduced else np.zeros((0, width), np.float32)

    def _pieces(self, raw: np.ndarray) -> Iterator[np.ndarray]:
        """Features before the reduction, some rows at a time, float64."""
        step = max(1, PIECE // self.size(raw))
        for start in range(0, len(raw), step):
            piece = raw[start : start + step]
            yield self._histograms(piece) if self.weights.size else piece.astype(np.float64)

    def _histograms(self, codes: np.ndarray) -> np.ndarray:
        """Shares of each known code among a sample's, weighted, [n, K]; codes that the fit never saw count nothing."""
        known = len(self.weights)
        rows, places = np.nonzero(codes < known)
        counts = np.bincount(rows * known + codes[rows, places], minlength=len(codes) * known)
        return counts.reshape(len(codes), known) / codes.shape[1] * self.weights

    def arrays(self) -> Mapping[str, np.ndarray]:
        """As named arrays."""
        return {name: values for name, values in vars(self).items() if values.size}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """What `arrays` gave."""
        return cls(*(arrays.get(name, np.zeros(0)) for name in ("weights", "mean", "components")))


def _rarity(codes: np.ndarray, idf: bool) -> np.ndarray:
    """Weight of each code up to the largest that a sample of codes [n, values] has: log(n / samples with it), or 1."""
    known = int(codes.max()) + 1
    if not idf:
        return np.ones(known)
    ordered = np.sort(codes, axis=1)
    first = np.diff(ordered, axis=1, prepend=-1) != 0
    having = np.bincount(ordered[first], minlength=known)
    return np.log(len(codes) / np.maximum(having, 1))
