"""Where data come from: `source:` strings, the content digest by which they are known, and their way into the store.

A source is a built-in set's name (`emoji`), a folder of tar shards, one shard, or a pattern of them
(`s3://bucket/cc12m/{00000..01242}.tar`), on disk or S3. It is known by content: `prepare` indexes it once, under

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

import hashlib
import json
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.data import INDEX_VERSION
from orchestrator.errors import Cancelled, DataError, LeaseLostError, UserError
from orchestrator.io.storage import Info, Storage
from orchestrator.plan.compile import Indexed
from orchestrator.store.leases import Held, Lease, acquire

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestrator.store.artifacts import Store

BRACES = re.compile(r"\{([^{}]*)\}")
MARKER = 2
"""Version of the marker's JSON; an older one is not found, and its source indexed once more."""
COPIES = 4
"""Shards that are copied at once."""
ELSEWHERE_S = 0.5
"""How often a source that another submission indexes is looked at."""


@dataclass(frozen=True)
class Location:
    """The shards of a source as they lie: their root and, sorted by key, what the listing says of each.

    Attributes:
        source: as written in the recipe.
        name: what to call the data: the built-in set's name, else the last part of the folder.
        builtin: whether the shards come with the package.
        url: root of the shards.
        shards: below that root.
    """

    source: str
    name: str
    builtin: bool
    url: str
    shards: tuple[Info, ...]

    @property
    def place(self) -> str:
        """`sources/<key>`: changes when a shard is added, removed or rewritten. A built-in set's is the same in every
        installation.
        """
        listing: list[Any] = [self.url, *([s.key, s.size, s.etag] for s in self.shards)]
        if self.builtin:
            from orchestrator.data.sets import info

            listing = [self.source, info(self.source)["content_digest"]]
        return f"sources/{hashlib.sha256(json.dumps([INDEX_VERSION, MARKER, listing]).encode()).hexdigest()}"


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


def expand(pattern: str) -> list[str]:
    """Expand `{00000..01242}` ranges (both ends included, zero-padded like the bounds); UserError if malformed."""
    pieces = BRACES.split(pattern)
    choices: list[list[str]] = []
    for number, piece in enumerate(pieces):
        choices.append([piece] if number % 2 == 0 else _range(piece, pattern))
    return ["".join(choice) for choice in product(*choices)]


def _range(inside: str, pattern: str) -> list[str]:
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if bounds is None or int(bounds[1]) > int(bounds[2]):
        raise UserError(
            f"'{{{inside}}}' in source '{pattern}' is not a range",
            "write it as {00000..01242}: first..last, digits only",
        )
    padded = any(len(b) > 1 and b.startswith("0") for b in bounds.groups())
    width = max(map(len, bounds.groups())) if padded else 1
    return [f"{number:0{width}d}" for number in range(int(bounds[1]), int(bounds[2]) + 1)]


def is_builtin(source: str) -> bool:
    """Whether this is the name of a set that comes with the package."""
    from orchestrator.data.sets import SETS

    return source in SETS


def locate(source: str) -> Location:
    """List the shards of a source; UserError if it is unknown, empty or incomplete."""
    if is_builtin(source):
        from orchestrator.data.sets import shards

        paths = [Path(path) for path in shards(source)]
        storage = Storage.open(str(paths[0].parent))
        found = [info for info in storage.list("") if info.key in {path.name for path in paths}]
        return Location(source, source, True, storage.url, tuple(found))
    if "{" in source or source.endswith(".tar"):
        return _listed(source, expand(source))
    _exists(source, source)
    storage = Storage.open(source)
    found = [info for info in storage.list("") if info.key.endswith(".tar")]
    if not found:
        raise UserError(f"no .tar shards in '{source}'", "`source` is a folder of WebDataset shards such as 00000.tar")
    return Location(source, _name(source), False, storage.url, tuple(found))


def _listed(source: str, urls: list[str]) -> Location:
    """The shards that a pattern names; all must be there."""
    root, _, _ = source.partition("{")[0].rpartition("/")
    root = root or "."
    _exists(root, source)
    storage = Storage.open(root)
    wanted = {url.removeprefix(f"{root}/") for url in urls}
    found = [info for info in storage.list("") if info.key in wanted]
    missing = sorted(wanted - {info.key for info in found})
    if missing:
        raise UserError(
            f"{len(missing)} of {len(wanted)} shards of '{source}' are missing, the first is {missing[0]}",
            "correct the range, or give the folder to take what is there",
        )
    return Location(source, _name(root), False, storage.url, tuple(found))


def _exists(root: str, source: str) -> None:
    if "://" in root or Path(root).expanduser().is_dir():
        return
    from orchestrator.data.sets import SETS

    raise UserError(
        f"source '{source}' is neither a built-in set nor a folder that exists",
        f"built-in sets: {', '.join(SETS)}; else a folder of tar shards, path/{{00000..00012}}.tar, or s3://bucket/folder",
    )


def _name(root: str) -> str:
    return root.rstrip("/").rpartition("/")[2] or root


def is_shared(source: str) -> bool:
    """Whether every machine sees the same under this name: an address in an object store, and not somebody's disk."""
    return source.startswith("s3://")


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
    found = known(source, store)
    return Indexed(found.digest, found.place) if found else None


def prepare(
    source: str,
    store: Store,
    cancel: Callable[[], object] = lambda: None,
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Index a source and return its content digest; what an interrupted call did is used. Of several at once, one
    indexes and the others wait.

    `cancel` is asked between shards and stops with Cancelled when it answers something true; `on_shard(done, total)`
    is told of progress. DataError if no sample is usable.
    """
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
                _index(location, store, lease, cancel, on_shard)
    return found.digest


def _index(
    location: Location,
    store: Store,
    lease: Lease,
    cancel: Callable[[], object],
    on_shard: Callable[[int, int], None],
) -> None:
    """`prepare`, as the one that does it. LeaseLostError if it no longer is."""
    storage = Storage.open(location.url)
    parts = []
    for number, shard in enumerate(location.shards):
        if cancel():
            of = f"{number} of {len(location.shards)} shards"
            raise Cancelled(f"indexing of '{location.source}' was stopped after {of}")
        part = f"{location.place}/parts/{number:06d}.parquet"
        if store.storage.head(part) is None:
            _write_part(storage, shard, store.storage, part, location.source)
        parts.append(partial(_read_part, store.storage, part))
        on_shard(number + 1, len(location.shards))
    lease.check()
    try:
        _publish(location, parts, store.storage)
    except FileNotFoundError:  # a successor was quicker, and has deleted the parts
        lease.check()
        raise


def _publish(location: Location, parts: Sequence[Callable[[], pa.Table]], storage: Storage) -> None:
    """Merge the parts, write the tables, then the marker; the parts go."""
    from orchestrator.data.index import merge

    with tempfile.TemporaryDirectory() as folder:
        facts = merge(parts, Path(folder))
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


def _write_part(shards: Storage, shard: Info, storage: Storage, part: str, source: str) -> None:
    """Index one shard; DataError if it is not the one that was listed, now or when it has been read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from orchestrator.data.index import index_shard

    try:
        table = index_shard(shards, shard.key)
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
