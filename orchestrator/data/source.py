"""How outside data become known: the content digest of a source, and its shards' way into the store.

A source (data/location.py) is known by content: `prepare` indexes it once, shard by shard and each on its own, under

    <root>/sources/<key>.json          written last: content digest, where the shards are, what was left out
    <root>/sources/<key>/...           the index tables, and parts of shards while it is being made
    <root>/sources/<key>/shards/...    the shards themselves, where `copy_in` brought them for workers elsewhere

The key is a SHA-256 over the listing (URL, then name, size and entity tag of each shard): it only finds the digest
again without reading the data, so the same shards elsewhere are indexed once more and then are the same data.
`prepare` and `copy_in` must run where the shards can be seen; what comes later goes by `sources/<key>` alone. A
`dataset` artifact names the places it needs in its manifest's `summary["needs"]`; a place that no kept manifest names
is a cache, to be deleted once it is so old that none may still come. No pyarrow at import: planning calls `identify`.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.data import INDEX_VERSION, benchmark, files
from orchestrator.data.location import By, Location, locate
from orchestrator.errors import Cancelled, DataError, LeaseLostError
from orchestrator.io.storage import Info, Storage
from orchestrator.plan.compile import Indexed
from orchestrator.store.leases import Held, Lease, acquire

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestrator.store.artifacts import Store

COPIES = 4
"""Shards that are copied at once."""
ELSEWHERE_S = 0.5
"""How often a source that another submission indexes is looked at."""
CHAINS = 16
"""Shards whose headers one worker reads at once: where a header is, only the one before it says, so each shard is a
chain of requests that mostly waits."""
OVERLAP = 2
"""Shards elsewhere that one worker reads whole at once: one comes while the other is hashed."""


@dataclass(frozen=True)
class Batch:
    """Shards for one worker to index: all that it must know.

    Attributes:
        source: for messages.
        url, store: root of the shards, and of the store.
        shards: each as it was listed, with the key of its part in the store.
    """

    source: str
    by: By
    url: str
    store: str
    shards: tuple[tuple[Info, str], ...]


Spread = Callable[[Sequence[Batch]], Generator[int, None, None]]
"""Has each batch indexed (`index_batch`), anywhere and in any order; yields how many shards it had when it is done."""


def in_turn(batches: Sequence[Batch]) -> Generator[int, None, None]:
    """The `Spread` over nothing: one after the other, here."""
    for batch in batches:
        yield index_batch(batch)


def index_batch(batch: Batch) -> int:
    """Index shards and keep their parts; returns how many. DataError if one is no longer what was listed."""
    shards, store = Storage.open(batch.url), Storage.open(batch.store)
    with ThreadPoolExecutor(len(batch.shards)) as pool:
        made = [
            pool.submit(_write_part, shards, shard, batch.by, store, part, batch.source)
            for shard, part in batch.shards
        ]
        for one in made:
            one.result()
    return len(made)


@dataclass(frozen=True)
class Known:
    """A source that has been indexed, as any machine may know it: where the store keeps it, and the marker."""

    place: str
    marker: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """The content digest."""
        return self.marker["content_digest"]

    @property
    def by(self) -> By:
        """By what its samples are known."""
        return self.marker["by"]

    @property
    def builtin(self) -> str | None:
        """Name of the built-in set it is, if it is one."""
        return self.marker["source"] if self.marker["url"] is None else None

    @property
    def url(self) -> str:
        """Where the original shards are: on this machine's disk, should it have them, or in an object store."""
        if self.builtin is None:
            return self.marker["url"]
        from orchestrator.data.sets import SETS

        return str(SETS[self.builtin])

    @property
    def sizes(self) -> dict[str, int]:
        """The shards' names, in order, with their sizes in bytes."""
        return dict(self.marker["shards"])

    def copied(self, store: Store) -> bool:
        """Whether `copy_in` has brought all shards into the store."""
        prefix = f"{self.place}/shards/"
        there = {info.key.removeprefix(prefix): info.size for info in store.storage.list(f"{self.place}/shards")}
        return there == self.sizes


def known(source: str, store: Store) -> Known | None:
    """What the store knows of a source's present listing, or None if that has not been indexed."""
    return known_at(locate(source).place, store)


def known_at(place: str, store: Store) -> Known | None:
    """What the store keeps at `sources/<key>`, for machines that cannot list the source; None if there is nothing."""
    try:
        return Known(place, json.loads(store.storage.get(f"{place}.json")))
    except FileNotFoundError:
        return None


def identify(source: str, store: Store) -> Indexed | None:
    """The content digest of a source and its place in the store if it is known, else None: `prepare` makes it known.

    Reads a listing, no data.
    """
    if source.startswith(benchmark.SCHEME):
        return benchmark.identify(source, store)
    if files.is_file(source):
        return files.identify_file(source, store)
    found = known(source, store)
    return Indexed(found.digest, found.place) if found else None


def prepare(
    source: str,
    store: Store,
    cancel: Callable[[], object] = lambda: None,
    on_shard: Callable[[int, int], None] = lambda done, total: None,
    spread: Spread = in_turn,
) -> str:
    """Index a source and return its content digest; what an interrupted call did is used. Of several at once, one
    indexes and the others wait.

    Args:
        cancel: asked between shards; stops with Cancelled when it answers something true.
        on_shard: told of progress: shards done, shards in all.
        spread: has the shards indexed. What it is given must be in sight wherever that is.

    Raises:
        DataError: no sample is usable.
    """
    if source.startswith(benchmark.SCHEME):
        return benchmark.prepare(source, store, cancel, on_shard)
    if files.is_file(source):
        return files.bring_file(source, store)
    location = locate(source)
    while (found := known_at(location.place, store)) is None:
        lease = acquire(store, location.place.rpartition("/")[2])
        if isinstance(lease, Held):
            if cancel():
                raise Cancelled(f"indexing of '{source}' was stopped while another submission does it")
            time.sleep(ELSEWHERE_S)
            continue
        with lease, suppress(LeaseLostError):  # stopped for long, and overtaken: the other one's result is as good
            if known_at(location.place, store) is None:  # finished between the look and the lease
                _index(location, store, lease, cancel, on_shard, spread)
    return found.digest


def _index(
    location: Location,
    store: Store,
    lease: Lease,
    cancel: Callable[[], object],
    on_shard: Callable[[int, int], None],
    spread: Spread,
) -> None:
    """`prepare`, as the one that does it. LeaseLostError if it no longer is."""
    parts = [f"{location.place}/parts/{number:06d}.parquet" for number in range(len(location.shards))]
    there = {info.key for info in store.storage.list(f"{location.place}/parts")}
    missing = [(shard, part) for shard, part in zip(location.shards, parts) if part not in there]
    done, total = len(parts) - len(missing), len(parts)
    if done:
        on_shard(done, total)
    size = CHAINS if location.by == "headers" else OVERLAP if "://" in location.url else 1
    batches = [
        Batch(location.source, location.by, location.url, store.url, tuple(missing[first : first + size]))
        for first in range(0, len(missing), size)
    ]
    with closing(spread(batches)) as finished:
        for count in finished:
            done += count
            on_shard(done, total)
            if done < total and cancel():
                raise Cancelled(f"indexing of '{location.source}' was stopped after {done} of {total} shards")
    lease.check()
    try:
        _publish(location, [partial(_read_part, store.storage, part) for part in parts], store.storage)
    except FileNotFoundError:  # a successor was quicker, and has deleted the parts
        lease.check()
        raise


def _publish(location: Location, parts: Sequence[Callable[[], pa.Table]], storage: Storage) -> None:
    """Merge the parts, write the tables, then the marker; the parts go."""
    from orchestrator.data.merge import merge

    with tempfile.TemporaryDirectory() as folder:
        facts = merge(parts, Path(folder), location.by)
        if not facts["rows"]:
            reasons = ", ".join(f"{reason}: {n}" for reason, n in facts["dropped"]["counts"].items())
            raise DataError(f"'{location.source}' has no usable sample", f"what was found: {reasons or 'nothing'}")
        for file in sorted(Path(folder).iterdir()):
            storage.put(f"{location.place}/{file.name}", file)
    marker = {
        "index_version": INDEX_VERSION,
        "source": location.source,
        "name": location.name,
        "url": None if location.builtin else location.url,
        "shards": [[s.key, s.size] for s in location.shards],
        **facts,
    }
    storage.put(f"{location.place}.json", json.dumps(marker, indent=1).encode())
    storage.delete_many([f"{location.place}/parts/{number:06d}.parquet" for number in range(len(parts))])


def copy_in(
    source: str,
    store: Store,
    cancel: Callable[[], object] = lambda: None,
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Copy the shards of an indexed source into the store, but those there already; the place they are below.

    An object appears whole or not at all, the server checks what it gets by the request's signature, and a shard that
    changed meanwhile is not kept: DataError. `cancel` and `on_shard` are as in `prepare`.
    """
    location = locate(source)
    if known_at(location.place, store) is None:
        raise changed(source)
    storage, prefix = Storage.open(location.url), f"{location.place}/shards"
    there = {info.key: info.size for info in store.storage.list(prefix)}
    missing = [shard for shard in location.shards if there.get(f"{prefix}/{shard.key}") != shard.size]
    before = len(location.shards) - len(missing)
    with ThreadPoolExecutor(COPIES) as pool:
        copies = [pool.submit(_copy, storage, shard, store.storage, f"{prefix}/{shard.key}") for shard in missing]
        try:
            for number, copy in enumerate(copies):
                if cancel():
                    raise Cancelled(f"copying of '{source}' was stopped after {before + number} shards")
                if not copy.result():
                    raise changed(source)
                on_shard(before + number + 1, len(location.shards))
        finally:
            pool.shutdown(cancel_futures=True)
    return location.place


def _copy(source: Storage, shard: Info, target: Storage, key: str) -> bool:
    """Copy one shard; False, and nothing is left, where it is no longer what was listed."""
    path = source.local(shard.key)
    if path is not None:
        target.put(key, path)
    else:
        with tempfile.TemporaryDirectory() as folder:
            source.download(shard.key, Path(folder) / "shard")
            target.put(key, Path(folder) / "shard")
    now = source.head(shard.key)
    same = now is not None and (now.size, now.etag) == (shard.size, shard.etag)
    if not same:
        target.delete(key)
    return same


def changed(source: str) -> DataError:
    """The error where shards are not those that were indexed."""
    return DataError(
        f"the shards of '{source}' changed while the run was being prepared", "submit again: they are indexed anew"
    )


def _write_part(shards: Storage, shard: Info, by: By, storage: Storage, part: str, source: str) -> None:
    """Index one shard; DataError if it is not the one that was listed, now or when it has been read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from orchestrator.data.index import index_shard

    try:
        table = index_shard(shards, shard.key, by)
    finally:
        now = shards.head(shard.key)
        if now is None or (now.size, now.etag) != (shard.size, shard.etag):
            raise changed(source)
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    storage.put(part, buffer.getvalue().to_pybytes())


def _read_part(storage: Storage, part: str) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.read_table(pa.BufferReader(storage.get(part)))
