"""K-means: Lloyd's iterations from centres that greedy k-means++ chose (Arthur and Vassilvitskii 2007).

Distances are products of matrices, a piece of the points at a time, so memory does not grow with points times
centres. They are computed in double precision: the order of additions, which machines and numbers of threads differ
in, then decides no point's cluster. An empty cluster is given the point that lies farthest from its own centre.
Nothing is drawn but the seeds, by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from orchestrator.data.draws import uniforms

PIECE = 1 << 22
"""Distances computed at once."""
SEEDING = 16
"""Points for each cluster, among which the first centres are chosen."""


@dataclass(frozen=True)
class Clusters:
    """What was found.

    Attributes:
        centres: [k, d] float64.
        sizes: points of each [k] int64.
        inertia: sum of the points' squared distances to their centres.
    """

    centres: np.ndarray
    sizes: np.ndarray
    inertia: float


def kmeans(
    points: np.ndarray, clusters: int, iterations: int = 20, seed: int = 0, spherical: bool = False
) -> Clusters:
    """Cluster points [n, d], which come in an order that chance decided (their first ones are a fair sample).

    Args:
        clusters: k; of fewer points than that, as many as there are.
        iterations: at most; it stops when no point changes its cluster.
        spherical: centres are scaled to length 1, for points that are: then the nearest is the most similar.
    """
    clusters = min(clusters, len(points))
    centres = seeds(points[: SEEDING * clusters].astype(np.float64), clusters, seed)
    labels, distances = nearest(points, centres)
    for _ in range(iterations):
        centres = _means(points, labels, distances, centres, spherical)
        before = labels
        labels, distances = nearest(points, centres)
        if np.array_equal(labels, before):
            break
    sizes = np.bincount(labels, minlength=len(centres))
    return Clusters(centres, sizes, float(distances.sum()))


def nearest(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centre [k, d] of each point [n, d] (of equals the first), uint32, and the squared distance."""
    labels, distances = np.empty(len(points), np.uint32), np.empty(len(points))
    lengths = np.einsum("kd,kd->k", centres, centres)
    step = max(1, PIECE // max(centres.shape))
    for start in range(0, len(points), step):
        piece = points[start : start + step].astype(np.float64)
        scores = lengths - 2 * (piece @ centres.T)
        found = scores.argmin(axis=1)
        labels[start : start + step] = found
        squares = scores[np.arange(len(piece)), found] + np.einsum("nd,nd->n", piece, piece)
        distances[start : start + step] = np.maximum(squares, 0)
    return labels, distances


def seeds(points: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """The first centres [k, d]: each the best of a few points drawn with probability by squared distance to those
    before it, that is, the one that leaves the least sum of squared distances.
    """
    tries = 2 + int(math.log(clusters))
    chosen = [int(uniforms(seed, "k-means seeds", 0)[0] * len(points))]
    left = _squares(points, points[chosen])[0]
    for number in range(1, clusters):
        draws = [draw for part in range(-(-tries // 8)) for draw in uniforms(seed, "k-means seeds", number, part)]
        reach = np.cumsum(left)
        places = np.searchsorted(reach, np.array(draws[:tries]) * reach[-1], side="right")
        places = np.minimum(places, len(points) - 1)
        after = np.minimum(left, _squares(points, points[places]))
        best = int(after.sum(axis=1).argmin())
        chosen.append(int(places[best]))
        left = after[best]
    return points[chosen]


def _squares(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Squared distances [m, n] of others [m, d] to points [n, d]."""
    lengths = np.einsum("nd,nd->n", points, points)
    found = lengths - 2 * (others @ points.T) + np.einsum("md,md->m", others, others)[:, None]
    return np.maximum(found, 0)


def _means(
    points: np.ndarray, labels: np.ndarray, distances: np.ndarray, centres: np.ndarray, spherical: bool
) -> np.ndarray:
    """The mean of each cluster's points [k, d]."""
    sums, step = np.zeros_like(centres), max(1, PIECE // points.shape[1])
    for start in range(0, len(points), step):
        order = np.argsort(labels[start : start + step], kind="stable") + start
        present, first = np.unique(labels[order], return_index=True)
        sums[present] += np.add.reduceat(points[order].astype(np.float64), first)
    sizes = np.bincount(labels, minlength=len(centres))
    means = sums / np.maximum(sizes, 1)[:, None]
    empty = np.flatnonzero(sizes == 0)
    means[empty] = points[np.argsort(-distances, kind="stable")[: len(empty)]]
    if spherical:
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return means
