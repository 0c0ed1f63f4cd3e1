"""`read:`, in which order and in what pieces a training reads its samples; and the rule behind `read: auto`.

`exact` draws every sample from all of the data; each is a request of its own wherever its neighbours are not wanted
too. `block` reads blocks and shuffles what is at hand (blocks.py): a fraction of the requests. The order is part of
the result, so the rule looks at nothing but the data: not at where they lie, nor at memory, ranks or processes.
`READ_RULE_VERSION` covers it, and the orders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from orchestrator.data.blocks import cut
from orchestrator.data.ranges import merge

if TYPE_CHECKING:
    from orchestrator.data.dataset import Dataset

ReadMode = Literal["exact", "block"]
EXACT_BYTES = 4 << 30
"""Images up to so many bytes are read in exact order: a disk's cache holds them, and 100,000 requests cost 4 cents."""
WORTHWHILE = 1.25
"""Samples that a request of block reading must bring, for it to be worth a coarser shuffle."""
LOOKED_AT = 64
"""Blocks, spread over the data, whose requests are counted."""


@dataclass(frozen=True)
class Reading:
    """The order that was chosen for a data set, and the reason for people."""

    mode: ReadMode
    why: str


def choose(wanted: Literal["auto"] | ReadMode, dataset: Dataset) -> Reading:
    """The order in which a training reads these samples."""
    if wanted != "auto":
        return Reading(wanted, "the recipe says so")
    order = stored_order(dataset)
    sizes = stored_sizes(dataset, order)
    total = int(sizes.sum())
    if total <= EXACT_BYTES:
        return Reading("exact", f"{total / 1e9:.3g} GB of images, at most {EXACT_BYTES / 1e9:.3g}")
    found = _samples_a_request(dataset, order, cut(sizes))
    enough = "enough" if found >= WORTHWHILE else "too few"
    mode: ReadMode = "block" if found >= WORTHWHILE else "exact"
    return Reading(
        mode, f"{total / 1e9:,.3g} GB of images; {found:.3g} of them come with a request of a block, {enough}"
    )


def stored_order(dataset: Dataset) -> np.ndarray:
    """Positions in the selection [n] in the order in which the samples are stored."""
    return np.argsort(dataset.rows, kind="stable")


def stored_sizes(dataset: Dataset, order: np.ndarray) -> np.ndarray:
    """Image bytes [n] int64 of the samples at these positions."""
    _, start, end = dataset.places(order)
    return end - start


def _samples_a_request(dataset: Dataset, order: np.ndarray, starts: np.ndarray) -> float:
    """How many samples a request brings when blocks are read, by some blocks spread over the data."""
    samples = requests = 0
    for block in np.unique(np.linspace(0, len(starts) - 2, LOOKED_AT).astype(np.int64)).tolist():
        shard, first, last = dataset.places(order[starts[block] : starts[block + 1]])
        samples += len(shard)
        requests += sum(len(merge(first[shard == one], last[shard == one])[0]) for one in np.unique(shard))
    return samples / requests
