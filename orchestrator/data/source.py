"""Where data come from: `source:` strings, and the content digest by which they are known.

A source is a built-in set's name (`emoji`), a folder of tar shards, one shard, or a pattern of them
(`s3://bucket/cc12m/{00000..01242}.tar`), on disk or S3. It is known by content: `prepare` indexes it once, under

    <root>/sources/<key>/...      the index tables, and parts of shards while it is being made
    <root>/sources/<key>.json     written last: content digest, shards, what was left out

The key is a SHA-256 over the listing (URL, then name, size and entity tag of each shard): it only finds the digest
again without reading the data, so the same shards elsewhere are indexed once more and then are the same data. No
pyarrow at import: planning calls `identify`.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.data import INDEX_VERSION
from orchestrator.errors import Cancelled, DataError, UserError
from orchestrator.io.storage import Info, Storage

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestrator.store.artifacts import Store

BRACES = re.compile(r"\{([^{}]*)\}")


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
    def key(self) -> str:
        """What finds the content digest again: changes when a shard is added, removed or rewritten."""
        listing = [self.url, *([s.key, s.size, s.etag] for s in self.shards)]
        return hashlib.sha256(json.dumps([INDEX_VERSION, listing]).encode()).hexdigest()


@dataclass(frozen=True)
class Known:
    """A source that has been indexed: where it lies, and the marker `sources/<key>.json`."""

    location: Location
    marker: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """The content digest."""
        return self.marker["content_digest"]


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


def known(source: str, store: Store) -> Known | None:
    """The source with its marker, or None if its present listing has not been indexed in this store."""
    location = locate(source)
    try:
        marker = json.loads(store.storage.get(f"sources/{location.key}.json"))
    except FileNotFoundError:
        return None
    return Known(location, marker)


def identify(source: str, store: Store) -> str | None:
    """The content digest of a source if it is known, else None: `prepare` makes it known. Reads a listing, no data."""
    found = known(source, store)
    return found.digest if found else None


def prepare(
    source: str,
    store: Store,
    cancel: Callable[[], object] = lambda: None,
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Index a source and return its content digest; what an interrupted call did is used.

    `cancel` is asked between shards and stops with Cancelled when it answers something true; `on_shard(done, total)`
    is told of progress. DataError if no sample is usable.
    """
    found = known(source, store)
    if found is not None:
        return found.digest
    location = locate(source)
    storage, prefix = Storage.open(location.url), f"sources/{location.key}"
    parts = []
    for number, shard in enumerate(location.shards):
        if cancel():
            raise Cancelled(f"indexing of '{source}' was stopped after {number} of {len(location.shards)} shards")
        part = f"{prefix}/parts/{number:06d}.parquet"
        if store.storage.head(part) is None:
            _write_part(storage, shard.key, store.storage, part)
        parts.append(partial(_read_part, store.storage, part))
        on_shard(number + 1, len(location.shards))
    return _publish(location, parts, store.storage, prefix)


def _publish(location: Location, parts: Sequence[Callable[[], pa.Table]], storage: Storage, prefix: str) -> str:
    """Merge the parts, write the tables, then the marker; the parts go."""
    from orchestrator.data.index import merge

    with tempfile.TemporaryDirectory() as folder:
        facts = merge(parts, Path(folder))
        if not facts["rows"]:
            reasons = ", ".join(f"{reason}: {n}" for reason, n in facts["dropped"]["counts"].items())
            raise DataError(f"'{location.source}' has no usable sample", f"what was found: {reasons or 'nothing'}")
        for file in sorted(Path(folder).iterdir()):
            storage.put(f"{prefix}/{file.name}", file)
    shards = [[s.key, s.size] for s in location.shards]
    marker = {"index_version": INDEX_VERSION, "source": location.source, "shards": shards, **facts}
    storage.put(f"{prefix}.json", json.dumps(marker, indent=1).encode())
    for number in range(len(parts)):
        storage.delete(f"{prefix}/parts/{number:06d}.parquet")
    return facts["content_digest"]


def _write_part(shards: Storage, shard: str, storage: Storage, part: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from orchestrator.data.index import index_shard

    buffer = pa.BufferOutputStream()
    pq.write_table(index_shard(shards, shard), buffer)
    storage.put(part, buffer.getvalue().to_pybytes())


def _read_part(storage: Storage, part: str) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.read_table(pa.BufferReader(storage.get(part)))
