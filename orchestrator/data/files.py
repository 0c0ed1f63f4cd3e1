"""Outside files that operators read (scores, lists of ids, concepts): known by the SHA-256 of their bytes.

    sources/<key>.json    the marker: digest, size, name
    sources/<key>/<name>  the file, brought into the store: workers anywhere read it there

As with shards (source.py), the key is a SHA-256 over the listing (address, size, entity tag): it finds the digest
again without reading the file.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.io.storage import Storage
from orchestrator.plan.compile import Indexed
from orchestrator.store.artifacts import Store, cache_root

SUFFIXES = (".parquet", ".npy", ".txt", ".csv", ".json")


def is_file(source: str) -> bool:
    """Whether a source is one file that operators read, and not shards."""
    return source.endswith(SUFFIXES)


def identify_file(source: str, store: Store) -> Indexed | None:
    """The digest of a file and its place in the store if they are known; UserError if there is no such file."""
    place = _place(source)
    try:
        marker = json.loads(store.storage.get(f"{place}.json"))
    except FileNotFoundError:
        return None
    return Indexed(marker["content_digest"], place)


def bring_file(source: str, store: Store) -> str:
    """Hash a file and bring it into the store; its digest."""
    place, (storage, name) = _place(source), _open(source)
    with tempfile.TemporaryDirectory() as folder:
        path = storage.local(name)
        if path is None:
            path = Path(folder) / name
            storage.download(name, path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        store.storage.put(f"{place}/{name}", path)
        marker = {"content_digest": digest, "size": path.stat().st_size, "name": name, "source": source}
    store.storage.put(f"{place}.json", json.dumps(marker, indent=1).encode())
    return digest


def local_file(place: str, store: Store) -> Path:
    """A brought file on this machine's disk: in place on a local store, else in the machine's cache."""
    marker = json.loads(store.storage.get(f"{place}.json"))
    key = f"{place}/{marker['name']}"
    path = store.storage.local(key)
    if path is None:
        path = cache_root() / "files" / marker["content_digest"] / marker["name"]
        if not path.is_file() or path.stat().st_size != marker["size"]:
            store.storage.download(key, path)
    return path


def _open(source: str) -> tuple[Storage, str]:
    folder, _, name = source.rpartition("/")
    return Storage.open(folder or "."), name


def _place(source: str) -> str:
    storage, name = _open(source)
    info = storage.head(name)
    if info is None:
        raise UserError(f"there is no file '{source}'", "correct the path, or write the file there first")
    listing = [storage.url, name, info.size, info.etag]
    return f"sources/{hashlib.sha256(json.dumps(listing).encode()).hexdigest()}"
