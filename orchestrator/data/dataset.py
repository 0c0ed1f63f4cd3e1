"""`Dataset`: immutable WebDataset shards, a narrow index, column groups laid over it, and a selection.

Files of a Dataset artifact (all tables in one row order: shard, then offset):

    dataset.json         format, counts, shards (name, size), column group -> {file, columns}, selection file or null,
                         content digest; files of upstream artifacts appear as
                         {"artifact": "<kind>/<fingerprint>", "file": ...}, never copied
    index.parquet        uid, image digest (16 bytes each), shard, image/text/json offset and size, image format
    captions.parquet     captions: list<struct<slot, lang, text>>, the primary one first;
                         slot in original|generated|keywords|short|long
    source.parquet       key, the sample's own uid from json
    labels.parquet ...   further groups: concept, style, category, width, height, scores, clusters,
                         split (train|id|ood|unseen)
    selection.parquet    row numbers kept (uint64)
    location.json        the data's name, and where the shards are (undeclared: it may differ between machines)

uid = the first 128 bits of SHA-256 over the encoded image bytes, the primary caption, and the count of equal pairs
before it. Curation writes column groups and a selection: keeping 24% copies no image. A later group's column hides an
earlier one's.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from orchestrator.data.shards import Shards
from orchestrator.data.tables import bytes_column, write_table
from orchestrator.errors import UserError
from orchestrator.io.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestrator.store.artifacts import Handle

FORMAT = 1
IDENTITY = np.dtype([("high", ">u8"), ("low", ">u8")])
"""128 bits as two numbers, in the order of the hex digits: what DataComp's selection files hold, too."""
Rows = Sequence[int] | np.ndarray
"""Positions in a selection."""
FROM_INDEX = ("uid", "image_digest", "caption")
FileRef = str | Mapping[str, str]
"""A file of this artifact, or {"artifact": "<kind>/<fingerprint>", "file": name} of another."""


@dataclass(frozen=True)
class Caption:
    """One text of a sample."""

    slot: str
    lang: str
    text: str


@dataclass(frozen=True)
class Sample:
    """One image-text pair as stored: id, encoded image bytes, its captions (the primary one first)."""

    uid: str
    image: bytes
    captions: tuple[Caption, ...]


class Uids(Sequence[str]):
    """Sample ids [n, 16] uint8 as 32 hex digits each, spelt when asked for."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, item: int) -> str: ...

    @overload
    def __getitem__(self, item: slice) -> Sequence[str]: ...

    def __getitem__(self, item: int | slice) -> str | Sequence[str]:
        return Uids(self._values[item]) if isinstance(item, slice) else self._values[item].tobytes().hex()


class Tables:
    """The tables of one artifact, each read when first needed; shared by all selections made of it."""

    def __init__(self, description: Mapping[str, Any], path: Callable[[FileRef], Path]) -> None:
        self.description = description
        self._path = path
        self._loaded: dict[str, pa.ChunkedArray] = {}
        self._file_of: dict[str, FileRef] = {}
        for group in description["columns"].values():
            self._file_of.update(dict.fromkeys(group["columns"], group["file"]))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all columns of all column groups."""
        return tuple(self._file_of)

    def column(self, name: str) -> pa.ChunkedArray:
        """A group's column over all rows."""
        if name not in self._loaded:
            self._loaded[name] = self._read(self._file_of[name], name)
        return self._loaded[name]

    def index(self, name: str) -> np.ndarray:
        """A column of the base index over all rows: numbers [n], or [n, 16] uint8."""
        column = self._read(self.description["index"], name)
        return bytes_column(column, 16) if name in ("uid", "image_digest") else column.to_numpy()

    def selection(self) -> np.ndarray:
        """Row numbers selected [n] int64, in row order."""
        if self.description["selection"] is None:
            return np.arange(self.description["rows"])
        return self._read(self.description["selection"], "row").to_numpy().astype(np.int64)

    def _read(self, file: FileRef, name: str) -> pa.ChunkedArray:
        import pyarrow.parquet as pq

        return pq.read_table(self._path(file), columns=[name], memory_map=True)[name]

    @cached_property
    def uid(self) -> np.ndarray:
        """Ids of all rows [n, 16] uint8."""
        return self.index("uid")

    @cached_property
    def image_digest(self) -> np.ndarray:
        """First 16 bytes of each image's SHA-256 [n, 16] uint8."""
        return self.index("image_digest")

    @cached_property
    def places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shard number, first byte and end of each row's image, [n] int64 each."""
        shard, offset, size = (self.index(n).astype(np.int64) for n in ("shard", "image_offset", "image_bytes"))
        return shard, offset, offset + size


class Dataset:
    """An opened Dataset: the selected rows of an index, and the means to read them."""

    name: str

    def __init__(self, name: str, tables: Tables, shards: Shards, rows: np.ndarray) -> None:
        self.name = name
        self._tables = tables
        self._shards = shards
        self._rows = rows

    @classmethod
    def open(cls, handle: Handle) -> Dataset:
        """Open a finished Dataset artifact."""

        def owner(file: FileRef) -> tuple[Handle, str]:
            if isinstance(file, str):
                return handle, file
            kind, _, fingerprint = file["artifact"].rpartition("/")
            return handle.store.handle(kind, fingerprint), file["file"]

        def path(file: FileRef) -> Path:
            artifact, name = owner(file)
            return artifact.local(name)

        description = json.loads(handle.read("dataset.json"))
        artifact, name = owner(description["location"])
        location = json.loads(artifact.read(name))
        tables = Tables(description, path)
        return cls(location["name"], tables, _shards(location, artifact, description), tables.selection())

    def __len__(self) -> int:
        """Number of selected samples."""
        return len(self._rows)

    @property
    def rows(self) -> np.ndarray:
        """Row number in the tables of each selected sample [n] int64."""
        return self._rows

    @property
    def uids(self) -> Sequence[str]:
        """Ids of the selected samples, 32 hex digits, in row order."""
        return Uids(self._tables.uid[self._rows])

    @property
    def columns(self) -> Sequence[str]:
        """Names of all columns that `column` gives."""
        return (*FROM_INDEX, *(name for name in self._tables.names if name != "captions"))

    def column(self, name: str) -> np.ndarray:
        """One column over the selected samples [n]; UserError naming the columns there are, if it is not one.

        `uid` and `image_digest` are 128-bit pairs of numbers (`IDENTITY`), `caption` is the primary caption's text;
        strings are objects, None where a sample has none.
        """
        if name in ("uid", "image_digest"):
            values = self._tables.uid if name == "uid" else self._tables.image_digest
            return np.ascontiguousarray(values[self._rows]).view(IDENTITY)[:, 0]
        if name == "caption":
            return np.array([captions[0].text for captions in self.captions(range(len(self)))], object)
        if name not in self.columns:
            raise UserError(f"'{self.name}' has no column '{name}'", f"its columns: {', '.join(self.columns)}")
        return self._tables.column(name).take(self._rows).to_numpy()

    def captions(self, rows: Rows) -> list[tuple[Caption, ...]]:
        """Captions of selected samples, by position in the selection."""
        found = self._tables.column("captions").take(self._rows[np.asarray(rows, np.int64)])
        return [tuple(Caption(**caption) for caption in captions) for captions in found.to_pylist()]

    def where(self, **equal: str) -> Dataset:
        """The samples whose columns have these values; no copy. `where(split="train")`."""
        keep = np.ones(len(self), bool)
        for name, value in equal.items():
            keep &= self.column(name) == value
        return self.take(np.flatnonzero(keep))

    def take(self, rows: Rows) -> Dataset:
        """The samples at these positions of the selection, in this order."""
        return Dataset(self.name, self._tables, self._shards, self._rows[np.asarray(rows, np.int64)])

    def check_shards(self) -> None:
        """DataError if a shard is gone, or has not the size that it was indexed with. For the start of a stage: the
        same size with other bytes is found when they are read.
        """
        self._shards.check([size for _, size in self._tables.description["shards"]])

    def images(self, rows: Rows) -> list[bytes]:
        """Encoded images by position in the selection, each checked against its digest; DataError if it changed."""
        wanted = self._rows[np.asarray(rows, np.int64)]
        shard, start, end = (place[wanted] for place in self._tables.places)
        by_shard: dict[int, list[int]] = defaultdict(list)
        for place in np.lexsort((start, shard)).tolist():
            by_shard[int(shard[place])].append(place)
        found: dict[int, bytes] = {}
        for number, places in by_shard.items():
            ranges = self._shards.read(number, start[places].tolist(), end[places].tolist())
            found.update(zip(places, ranges))
        for place, image in found.items():
            if hashlib.sha256(image).digest()[:16] != self._tables.image_digest[wanted[place]].tobytes():
                raise self._shards.changed(f"{self.describe(rows[place])} is not the image that was indexed")
        return [found[place] for place in range(len(wanted))]

    def read(self, rows: Rows) -> list[Sample]:
        """Stored samples by position in the selection; neighbours are read together."""
        samples = zip(rows, self.images(rows), self.captions(rows))
        uids = self.uids
        return [Sample(uids[row], image, captions) for row, image, captions in samples]

    def describe(self, row: int) -> str:
        """A sample for messages: its uid, shard and key."""
        at = int(self._rows[row])
        shard = self._shards.names[int(self._tables.places[0][at])]
        return f"sample {self.uids[row]} ({shard}, key {self._tables.column('key')[at].as_py()})"


def _shards(location: Mapping[str, Any], artifact: Handle, description: Mapping[str, Any]) -> Shards:
    """The shards by what location.json says: in the package, at a URL, or copied into the store."""
    names = [name for name, _ in description["shards"]]
    if "builtin" in location:
        from orchestrator.data.sets import SETS

        return Shards(Storage.open(str(SETS[location["builtin"]])), "", names)
    if "url" in location:
        return Shards(Storage.open(location["url"]), "", names)
    return Shards(artifact.store.storage, f"{location['copied']}/", names)


def write_description(out: Path, description: Mapping[str, Any]) -> None:
    """Write dataset.json: all of its keys but `format` come from `description`."""
    content = json.dumps({"format": FORMAT, **description}, indent=1, sort_keys=True)
    (out / "dataset.json").write_text(content, encoding="utf-8")


def write_selection(out: Path, upstream: Handle, rows: np.ndarray) -> None:
    """Write into `out` the Dataset that keeps these table rows of `upstream`: a selection and references, no data."""
    import pyarrow as pa

    def refer(file: FileRef) -> FileRef:
        here = f"{upstream.manifest.kind}/{upstream.manifest.fingerprint}"
        return {"artifact": here, "file": file} if isinstance(file, str) else file

    description = json.loads(upstream.read("dataset.json"))
    kept = pa.table({"row": pa.array(np.sort(rows), pa.uint64())})
    write_table(out / "selection.parquet", [kept], kept.schema)
    columns = {name: {**group, "file": refer(group["file"])} for name, group in description["columns"].items()}
    changed = {"columns": columns, "selection": "selection.parquet", "selected": len(rows)}
    references = {name: refer(description[name]) for name in ("index", "location")}
    write_description(out, {**description, **references, **changed})
