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
    columns.parquet      what a curation added; null where it dropped the sample
    selection.npy        rows selected: a bit each (uint8, packed), or a count each (uint16) where samples repeat
    location.json        the data's name, and where the shards are (undeclared: it may differ between machines)

uid = the first 128 bits of SHA-256 over the encoded image bytes, the primary caption, and the count of equal pairs
before it. Curation writes a column group and a selection: keeping 24% copies no image. A column of a later group takes
an earlier one's place. `Dataset.part` reads a range of rows without the rest: memory does not grow with the data.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from orchestrator.data.shards import Shards, Traffic
from orchestrator.data.tables import ROW_GROUP, bytes_column
from orchestrator.errors import StageError, UserError
from orchestrator.io.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestrator.store.artifacts import Handle

FORMAT = 2
SELECTION = "selection.npy"
BLOCK_ROWS = 8192
"""Rows that are curated together, at most: those of a shard, where it is not larger."""
NEAR = ROW_GROUP
"""Rows that lie within so many are read by row groups."""
KEPT_GROUPS = 16
"""Row groups of columns that stay in memory."""
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
    """The tables of one artifact, read when needed; shared by all selections made of it. Thread-safe.

    Rows that lie near each other are read by row groups, of which the last few are kept; of others the whole column is
    read, once.
    """

    def __init__(self, description: Mapping[str, Any], path: Callable[[FileRef], Path]) -> None:
        self.description = description
        self._path = path
        self._loaded: dict[str, pa.ChunkedArray] = {}
        self._numbers: dict[str, np.ndarray] = {}
        self._groups: OrderedDict[tuple[str, int], pa.ChunkedArray] = OrderedDict()
        self._opened: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._file_of: dict[str, FileRef] = {}
        for group in description["columns"].values():
            self._file_of.update(dict.fromkeys(group["columns"], group["file"]))

    def __len__(self) -> int:
        """Rows in all, selected or not."""
        return self.description["rows"]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all columns of all column groups."""
        return tuple(self._file_of)

    @property
    def knows_images(self) -> bool:
        """Whether the index has the images' digests: not if it was made of headers."""
        return self.description.get("indexed_by") != "headers"

    def take(self, name: str, rows: np.ndarray) -> pa.ChunkedArray:
        """A column of a group, or of the base index, at these rows [n] in any order."""
        if not len(rows):
            return self._column(name).slice(0, 0)
        if not self._near(rows):
            return self._column(name).take(rows)
        groups = range(int(rows.min()) // ROW_GROUP, int(rows.max()) // ROW_GROUP + 1)
        near = [chunk for group in groups for chunk in self._group(name, group).chunks]
        return chunked(near).take(rows - groups[0] * ROW_GROUP)

    def index(self, name: str, rows: np.ndarray) -> np.ndarray:
        """A column of the base index at these rows: numbers [n], or [n, 16] uint8."""
        if self._near(rows):
            return _plain(name, self.take(name, rows))
        if name not in self._numbers:
            self._numbers[name] = _plain(name, self._column(name))
        return self._numbers[name][rows]

    def places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shard number, first byte and end of each row's image, [n] int64 each."""
        shard, offset, size = (self.index(n, rows).astype(np.int64) for n in ("shard", "image_offset", "image_bytes"))
        return shard, offset, offset + size

    @cached_property
    def shard_bounds(self) -> np.ndarray:
        """First row of each shard, and the number of rows: [shards + 1] int64, read a row group at a time."""
        counts = np.zeros(len(self.description["shards"]), np.int64)
        file = self._file(self.description["index"])
        for group in range(file.num_row_groups):
            shards = file.read_row_group(group, columns=["shard"])["shard"].to_numpy()
            counts += np.bincount(shards, minlength=len(counts))
        return np.concatenate([[0], np.cumsum(counts)])

    def selected(self, start: int, stop: int) -> np.ndarray:
        """Row numbers selected among [start, stop), in row order, repeated ones as often as they count: [n] int64."""
        marks = self._marks
        if marks is None:
            return np.arange(start, stop)
        if marks.dtype == np.uint16:
            return np.repeat(np.arange(start, stop), marks[start:stop])
        bits = np.unpackbits(marks[start // 8 : -(-stop // 8)])[start % 8 :][: stop - start]
        return start + np.flatnonzero(bits)

    @cached_property
    def _marks(self) -> np.ndarray | None:
        file = self.description["selection"]
        return None if file is None else np.load(self._path(file), mmap_mode="r")

    def _near(self, rows: np.ndarray) -> bool:
        """Whether reading these rows by row groups is worth it."""
        return len(self) > NEAR and len(rows) > 0 and int(rows.max()) - int(rows.min()) < NEAR

    def _column(self, name: str) -> pa.ChunkedArray:
        with self._lock:  # an opened file is read by one thread at a time
            if name not in self._loaded:
                self._loaded[name] = self._file(self._place(name)).read(columns=[name])[name]
            return self._loaded[name]

    def _group(self, name: str, group: int) -> pa.ChunkedArray:
        key = (name, group)
        with self._lock:
            if key not in self._groups:
                file = self._file(self._place(name))
                self._groups[key] = file.read_row_group(group, columns=[name], use_threads=False)[name]
            self._groups.move_to_end(key)
            while len(self._groups) > KEPT_GROUPS:
                self._groups.popitem(last=False)
            return self._groups[key]

    def _place(self, name: str) -> FileRef:
        return self._file_of.get(name, self.description["index"])

    def _file(self, file: FileRef) -> Any:
        import pyarrow.parquet as pq

        path = str(self._path(file))
        if path not in self._opened:
            self._opened[path] = pq.ParquetFile(path, memory_map=True)
        return self._opened[path]


class Dataset:
    """An opened Dataset: the selected rows of an index, and the means to read them."""

    name: str

    def __init__(self, name: str, tables: Tables, shards: Shards, rows: np.ndarray | None = None) -> None:
        self.name = name
        self._tables = tables
        self._shards = shards
        self._chosen = rows

    @classmethod
    def open(cls, handle: Handle) -> Dataset:
        """Open a finished Dataset artifact; StageError if this version cannot read it."""

        def owner(file: FileRef) -> tuple[Handle, str]:
            if isinstance(file, str):
                return handle, file
            kind, _, fingerprint = file["artifact"].rpartition("/")
            return handle.store.handle(kind, fingerprint), file["file"]

        def path(file: FileRef) -> Path:
            artifact, name = owner(file)
            return artifact.local(name)

        description = json.loads(handle.read("dataset.json"))
        if description["format"] != FORMAT:
            raise StageError(
                f"a data set of format {description['format']}; this version of orch reads {FORMAT}",
                "submit the recipe that made it again: it is made anew",
            )
        artifact, name = owner(description["location"])
        location = json.loads(artifact.read(name))
        return cls(location["name"], Tables(description, path), _shards(location, artifact, description))

    def __len__(self) -> int:
        """Number of selected samples."""
        return self._tables.description["selected"] if self._chosen is None else len(self._chosen)

    @property
    def rows(self) -> np.ndarray:
        """Row number in the tables of each selected sample [n] int64."""
        if self._chosen is None:
            self._chosen = self._tables.selected(0, len(self._tables))
        return self._chosen

    @property
    def num_rows(self) -> int:
        """Rows of the tables, selected or not."""
        return len(self._tables)

    @property
    def shards(self) -> Sequence[tuple[str, int]]:
        """Names and sizes in bytes of the shards that the tables speak of."""
        return [(name, size) for name, size in self._tables.description["shards"]]

    def blocks(self, most: int = BLOCK_ROWS) -> list[tuple[int, int]]:
        """The tables' rows as ranges [start, stop), each within one shard and of `most` rows at most, in order."""
        bounds = self._tables.shard_bounds.tolist()
        return [
            (start, min(start + most, last)) for first, last in pairwise(bounds) for start in range(first, last, most)
        ]

    def part(self, start: int, stop: int) -> Dataset:
        """The selected samples among these rows of the tables; nothing of the others is read."""
        assert self._chosen is None or len(self._chosen) == self._tables.description["selected"]
        return Dataset(self.name, self._tables, self._shards, self._tables.selected(start, stop))

    def at(self, rows: np.ndarray) -> Dataset:
        """The samples in these rows of the tables [n] int64, selected or not, in this order."""
        return Dataset(self.name, self._tables, self._shards, rows)

    @cached_property
    def uids(self) -> Sequence[str]:
        """Ids of the selected samples, 32 hex digits, in row order."""
        return Uids(self._tables.index("uid", self.rows))

    @property
    def columns(self) -> Sequence[str]:
        """Names of all columns that `column` gives."""
        known = FROM_INDEX if self._tables.knows_images else [name for name in FROM_INDEX if name != "image_digest"]
        return (*known, *(name for name in self._tables.names if name != "captions"))

    def column(self, name: str) -> np.ndarray:
        """One column over the selected samples [n]; UserError naming the columns there are, if it is not one.

        `uid` and `image_digest` are 128-bit pairs of numbers (`IDENTITY`), `image_bytes` sizes in the shard, `caption`
        is the primary caption's text; strings are objects, None where a sample has none.
        """
        if name == "image_digest" and not self._tables.knows_images:
            raise UserError(
                f"'{self.name}' has no image digests: it was indexed by headers",
                "index it by content (`index: content` of the dataset stage), or compare embeddings instead",
            )
        if name in ("uid", "image_digest"):
            return np.ascontiguousarray(self._tables.index(name, self.rows)).view(IDENTITY)[:, 0]
        if name == "caption":
            return np.array([captions[0].text for captions in self.captions(range(len(self)))], object)
        if name not in self.columns:
            raise UserError(f"'{self.name}' has no column '{name}'", f"its columns: {', '.join(self.columns)}")
        return self._tables.take(name, self.rows).to_numpy()

    def captions(self, rows: Rows) -> list[tuple[Caption, ...]]:
        """Captions of selected samples, by position in the selection."""
        found = self._tables.take("captions", self.rows[np.asarray(rows, np.int64)])
        return [tuple(Caption(**caption) for caption in captions) for captions in found.to_pylist()]

    def index(self, name: str) -> np.ndarray:
        """A column of the base index over the selected samples: numbers [n], or [n, 16] uint8."""
        return self._tables.index(name, self.rows)

    def table(self) -> pa.Table:
        """All columns of all groups over the selected samples."""
        import pyarrow as pa

        return pa.table({name: self._tables.take(name, self.rows) for name in self._tables.names})

    def where(self, **equal: str) -> Dataset:
        """The samples whose columns have these values; no copy. `where(split="train")`."""
        keep = np.ones(len(self), bool)
        for name, value in equal.items():
            keep &= self.column(name) == value
        return self.take(np.flatnonzero(keep))

    def take(self, rows: Rows) -> Dataset:
        """The samples at these positions of the selection, in this order."""
        return self.at(self.rows[np.asarray(rows, np.int64)])

    def check_shards(self) -> None:
        """DataError if a shard is gone, or has not the size that it was indexed with. For the start of a stage: the
        same size with other bytes is found when they are read.
        """
        self._shards.check([size for _, size in self._tables.description["shards"]])

    def places(self, rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shard number, first byte and end of the images of selected samples, by position in the selection."""
        return self._tables.places(self.rows[np.asarray(rows, np.int64)])

    @property
    def traffic(self) -> Traffic:
        """What has been read of the shards so far, by this data set and all selections made of it."""
        return self._shards.traffic

    def images(self, rows: Rows) -> list[bytes]:
        """Encoded images by position in the selection, each checked against its digest, if data indexed by headers do
        not lack it; DataError if it changed.
        """
        wanted = self.rows[np.asarray(rows, np.int64)]
        shard, start, end = self._tables.places(wanted)
        order = np.lexsort((start, shard))
        edges = np.flatnonzero(np.diff(shard[order])) + 1
        runs = [run for run in np.split(order, edges) if len(run)]
        read = self._shards.read_each([(int(shard[run[0]]), start[run].tolist(), end[run].tolist()) for run in runs])
        digests = self._tables.index("image_digest", wanted) if self._tables.knows_images else None
        found = [b""] * len(wanted)
        for run, images in zip(runs, read):
            for place, image in zip(run.tolist(), images):
                if digests is not None and hashlib.sha256(image).digest()[:16] != digests[place].tobytes():
                    raise self._shards.changed(f"{self.describe(rows[place])} is not the image that was indexed")
                found[place] = image
        return found

    def read(self, rows: Rows) -> list[Sample]:
        """Stored samples by position in the selection; neighbours are read together."""
        samples = zip(rows, self.images(rows), self.captions(rows))
        uids = self.uids
        return [Sample(uids[row], image, captions) for row, image, captions in samples]

    def describe(self, row: int) -> str:
        """A sample for messages: its uid, shard and key."""
        here = self.take([row])
        shard = self._shards.names[int(self._tables.index("shard", here.rows)[0])]
        return f"sample {here.uids[0]} ({shard}, key {here.column('key')[0]})"


def _shards(location: Mapping[str, Any], artifact: Handle, description: Mapping[str, Any]) -> Shards:
    """The shards by what location.json says: in the package, in this artifact, at a URL, or copied into the store."""
    names = [name for name, _ in description["shards"]]
    if "builtin" in location:
        from orchestrator.data.sets import SETS

        return Shards(Storage.open(str(SETS[location["builtin"]])), "", names)
    if "here" in location:
        return Shards(artifact.store.storage, f"{artifact.manifest.prefix}/{location['here']}/", names)
    if "url" in location:
        return Shards(Storage.open(location["url"]), "", names)
    return Shards(artifact.store.storage, f"{location['copied']}/", names)


def _plain(name: str, column: pa.ChunkedArray) -> np.ndarray:
    """A column of the base index as an array."""
    return bytes_column(column, 16) if name in ("uid", "image_digest") else column.to_numpy()


def chunked(chunks: list[pa.Array]) -> pa.ChunkedArray:
    """Pieces of a column, one behind the other."""
    import pyarrow as pa

    return pa.chunked_array(chunks)


def write_description(out: Path, description: Mapping[str, Any]) -> None:
    """Write dataset.json: all of its keys but `format` come from `description`."""
    content = json.dumps({"format": FORMAT, **description}, indent=1, sort_keys=True)
    (out / "dataset.json").write_text(content, encoding="utf-8")


def write_choice(
    out: Path, upstream: Handle, selection: np.ndarray, selected: int, columns: Mapping[str, Sequence[str]] = {}
) -> None:
    """Write into `out` the Dataset that another one becomes by choosing among its rows: references, and no data.

    Args:
        upstream: the other one.
        selection: as `selection.npy` holds it: packed bits (uint8), or counts (uint16).
        selected: samples selected, repeated ones as often as they count.
        columns: column groups to lay over, by name: each a file `<name>.parquet` in `out` with these columns.
    """

    def refer(file: FileRef) -> FileRef:
        here = f"{upstream.manifest.kind}/{upstream.manifest.fingerprint}"
        return {"artifact": here, "file": file} if isinstance(file, str) else file

    description = json.loads(upstream.read("dataset.json"))
    np.save(out / SELECTION, selection)
    new = {name for names in columns.values() for name in names}
    groups = {
        name: {"file": refer(group["file"]), "columns": [column for column in group["columns"] if column not in new]}
        for name, group in description["columns"].items()
    }
    groups |= {name: {"file": f"{name}.parquet", "columns": list(names)} for name, names in columns.items()}
    references = {name: refer(description[name]) for name in ("index", "location")}
    changed = {"columns": groups, "selection": SELECTION, "selected": selected}
    write_description(out, {**description, **references, **changed})
