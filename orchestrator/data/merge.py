"""Joins the index parts of all shards into the tables of a Dataset: equal pairs are numbered, and counted.

Equal pairs have one uid each because the number of equal ones before them counts (data/index.py), which only somebody
who has seen all shards can know. So this is the one step that is not done shard by shard. It holds digests alone,
however much text the samples have.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING, Any

from orchestrator.data.bad import BadSamples
from orchestrator.data.index import NO_TAR, TRUNCATED, sample_uid
from orchestrator.data.location import By
from orchestrator.data.tables import OPTIONAL, ROW_GROUP, TableWriter, binary_column, bytes_column, schemas

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

AHEAD = 8
"""Parts that are loaded at once."""
LOST = "lost with a damaged shard (estimated)"


def merge(parts: Sequence[Callable[[], pa.Table]], out: Path, by: By = "content") -> dict[str, Any]:
    """Join the parts of all shards (in shard order, each loaded twice) into a Dataset's tables in `out`.

    Returns rows, content digest, column groups, what was left out, what was read, and how many exact duplicates there
    are: pairs equal to an earlier one, and images (None by headers, which do not tell). Holds 64 bytes a sample in
    memory, and some 40 more while it joins or sorts them (12 million: 1.2 GB).
    """
    import numpy as np

    facts = _Facts()
    for table in _loaded(parts):
        facts.add(table)
    uid, samples, images = facts.arrays()
    counts = _equal_before(uid)
    groups = schemas()
    if by == "headers":
        groups["index"] = groups["index"].remove(groups["index"].get_field_index("image_digest"))
    for group, schema in groups.items():
        for name in set(schema.names) & (set(OPTIONAL) - facts.filled):
            schema = schema.remove(schema.get_field_index(name))
        groups[group] = schema
    groups = {group: schema for group, schema in groups.items() if len(schema)}
    with ExitStack() as stack:
        writers = [stack.enter_context(TableWriter(out / f"{name}.parquet", groups[name])) for name in groups]
        start = 0
        for shard, table in enumerate(_loaded(parts)):
            rows = slice(start, start := start + len(table))
            table = _final(table, shard, uid[rows], counts[rows])
            for writer in writers:
                writer.write(table)
    digest = content_digest(uid, samples)
    pairs, distinct = np.count_nonzero(counts), len(np.unique(images))
    return {
        "by": by,
        "rows": len(uid),
        "content_digest": digest if by == "content" else f"{by}:{digest}",
        "columns": {group: f"{group}.parquet" for group in groups if group != "index"},
        "dropped": _all_dropped(facts.kept, facts.dropped).as_json(),
        "duplicates": {"pairs": int(pairs), "images": len(images) - distinct if by == "content" else None},
        "read": facts.read,
    }


def _loaded(parts: Sequence[Callable[[], pa.Table]]) -> Iterator[pa.Table]:
    """The parts in order, the next few on their way: in an object store each is worth some ten milliseconds."""
    waiting = iter(parts)
    with ThreadPoolExecutor(AHEAD) as pool:
        coming = deque(pool.submit(part) for part in islice(waiting, AHEAD))
        while coming:
            yield coming.popleft().result()
            coming.extend(pool.submit(part) for part in islice(waiting, 1))


class _Facts:
    """What merging must know of all parts before it writes the first."""

    def __init__(self) -> None:
        self.kept: list[int] = []
        self.dropped: list[BadSamples] = []
        self.filled: set[str] = set()
        self.read = {"bytes": 0, "requests": 0}
        self._digests: list[list[np.ndarray]] = [[], [], []]

    def add(self, part: pa.Table) -> None:
        """Look at one part."""
        metadata = {name: json.loads(value) for name, value in part.schema.metadata.items()}
        self.kept.append(len(part))
        self.dropped.append(BadSamples())
        self.dropped[-1].merge(metadata[b"dropped"])
        self.filled.update(name for name in OPTIONAL if part[name].null_count < len(part))
        for what in self.read:
            self.read[what] += metadata[b"read"][what]
        self._digests[0].append(bytes_column(part["uid"], 16))
        self._digests[1].append(bytes_column(part["sample_digest"], 32))
        self._digests[2].append(bytes_column(part["image_sha256"], 32)[:, :8].copy())

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of all samples, once: uids as if each were the first of its kind [n, 16] uint8, sample digests [n, 32]
        uint8, and the first 8 bytes of image digests [n] uint64 (two of 2 billion are equal by a chance of 0.1).
        """
        import numpy as np

        found = []
        for width, digests in zip((16, 32, 8), self._digests, strict=True):
            found.append(np.concatenate([*digests, np.empty((0, width), np.uint8)]))
            digests.clear()
        uid, samples, images = found
        return uid, samples, images.view(np.uint64)[:, 0]


def _all_dropped(kept: Sequence[int], dropped: Sequence[BadSamples]) -> BadSamples:
    """What all shards lack. Nobody knows what a damaged one held: as much as the whole ones hold in the middle."""
    sizes = [n + bad.counts.total() for n, bad in zip(kept, dropped)]
    whole = [size for size, bad in zip(sizes, dropped) if not bad.counts.keys() & {TRUNCATED, NO_TAR}]
    every = BadSamples()
    for size, bad in zip(sizes, dropped):
        every.merge(bad.as_json())
        for reason in bad.counts.keys() & {TRUNCATED, NO_TAR}:
            if whole and size < median_low(whole):
                every.add(LOST, bad.examples[reason][0], median_low(whole) - size)
    return every


def content_digest(uids: np.ndarray, sample_digests: np.ndarray) -> str:
    """SHA-256 in hex over (uid | sample digest) in uid order; [n, 16] and [n, 32] uint8 in any order."""
    import numpy as np

    words = np.ascontiguousarray(uids).view(">u8")
    order = np.lexsort((words[:, 1], words[:, 0]))
    digest = hashlib.sha256()
    for start in range(0, len(order), ROW_GROUP):
        rows = order[start : start + ROW_GROUP]
        digest.update(np.concatenate([uids[rows], sample_digests[rows]], axis=1).tobytes())
    return digest.hexdigest()


def _equal_before(uids: np.ndarray) -> np.ndarray:
    """For each row of [n, 16], how many equal rows come before it."""
    import numpy as np

    words = np.ascontiguousarray(uids).view(">u8")
    order = np.lexsort((words[:, 1], words[:, 0]))  # stable: equal rows stay in their order
    first = np.ones(len(order), bool)
    first[1:] = (words[order[1:]] != words[order[:-1]]).any(axis=1)
    place = np.arange(len(order))
    counts = np.empty(len(order), np.int64)
    counts[order] = place - np.maximum.accumulate(np.where(first, place, 0))
    return counts


def _final(part: pa.Table, shard: int, uids: np.ndarray, counts: np.ndarray) -> pa.Table:
    """A part with the columns of the base index. Writes the final uids into `uids` [n, 16], too."""
    import numpy as np
    import pyarrow as pa

    images, captions = (bytes_column(part[name], 32) for name in ("image_sha256", "caption_sha256"))
    for row in np.flatnonzero(counts):
        uid = sample_uid(images[row].tobytes(), captions[row].tobytes(), int(counts[row]))
        uids[row] = np.frombuffer(uid, np.uint8)
    part = part.set_column(part.schema.get_field_index("uid"), "uid", binary_column(uids))
    part = part.append_column("image_digest", binary_column(images[:, :16]))
    return part.append_column("shard", pa.array(np.full(len(part), shard, np.uint32)))
