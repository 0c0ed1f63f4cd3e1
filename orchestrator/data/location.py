"""What a `source:` says: a built-in set, a folder of tar shards, one shard, or a pattern of them, on disk or S3.

`locate` finds the shards by listing, and reads none. Shards may lie in folders of folders; what lies beside them
(img2dataset's `.parquet` and `_stats.json`, DataComp's `.npz`) is passed over. A source that is to be known by headers
alone (data/index.py) is written `headers:` and then as ever.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from orchestrator.data import INDEX_VERSION
from orchestrator.errors import UserError
from orchestrator.io.storage import Info, Storage

By = Literal["content", "headers"]
"""By what samples are known: all of their bytes, or their texts, names and sizes (data/index.py)."""
BRACES = re.compile(r"\{([^{}]*)\}")
HEADERS = "headers:"
"""How sources begin that are known by headers."""
MARKER = 3
"""Version of the marker's JSON (data/source.py); an older one is not found, and its source indexed once more."""


@dataclass(frozen=True)
class Location:
    """The shards of a source as they lie: their root and, sorted by key, what the listing says of each.

    Attributes:
        source: as written in the recipe.
        by: by what its samples are to be known.
        name: what to call the data: the built-in set's name, else the last part of the folder.
        builtin: whether the shards come with the package.
        url: root of the shards.
        shards: below that root.
    """

    source: str
    by: By
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
        return f"sources/{hashlib.sha256(json.dumps([INDEX_VERSION, MARKER, self.by, listing]).encode()).hexdigest()}"


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


def spelled(source: str, by: By) -> str:
    """The source under the name by which `locate` and the plan know it."""
    return HEADERS + source if by == "headers" else source


def locate(source: str) -> Location:
    """List the shards of a source; UserError if it is unknown, empty or incomplete."""
    by: By = "headers" if source.startswith(HEADERS) else "content"
    source = source.removeprefix(HEADERS)
    if is_builtin(source):
        from orchestrator.data.sets import shards

        paths = [Path(path) for path in shards(source)]
        storage = Storage.open(str(paths[0].parent))
        found = [info for info in storage.list("") if info.key in {path.name for path in paths}]
        return Location(source, by, source, True, storage.url, tuple(found))
    if "{" in source or source.endswith(".tar"):
        root, found = _listed(source, expand(source))
    else:
        _exists(source, source)
        root, found = source, [info for info in Storage.open(source).list("") if info.key.endswith(".tar")]
    if not found:
        raise UserError(f"no .tar shards in '{source}'", "`source` is a folder of WebDataset shards such as 00000.tar")
    return Location(source, by, _name(root), False, Storage.open(root).url, tuple(found))


def _listed(source: str, urls: list[str]) -> tuple[str, list[Info]]:
    """The folder and the shards that a pattern names; all must be there."""
    root, _, _ = source.partition("{")[0].rpartition("/")
    root = root or "."
    _exists(root, source)
    wanted = {url.removeprefix(f"{root}/") for url in urls}
    found = [info for info in Storage.open(root).list("") if info.key in wanted]
    missing = sorted(wanted - {info.key for info in found})
    if missing:
        raise UserError(
            f"{len(missing)} of {len(wanted)} shards of '{source}' are missing, the first is {missing[0]}",
            "correct the range, or give the folder to take what is there",
        )
    return root, found


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
    return source.removeprefix(HEADERS).startswith("s3://")
