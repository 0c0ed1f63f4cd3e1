"""Benchmark sets by path: evaluation data in CLIP_benchmark's folder layout, known by content.

    <set>/<split>/nshards.txt, 0.tar, 1.tar, ...     of each sample an image and its class (.cls), its captions (.txt,
                                                     one a line) or facts (.npy, a vector of numbers)
    <set>/classnames.txt, zeroshot_classification_templates.txt      one a line; `{c}` is the class name's place
    <set>/dataset_type.txt                           `retrieval`, `multilabel`, `associations`; none: classification
    <set>/associations.jsonl                         {"cue", "candidates", "associations"}: keys of images

A split of a set is outside data as a `source:` is (data/source.py). It is written `benchmark:<set>/<split>`, and known
by a digest of its samples in their order and of its texts; `prepare` reads it once and keeps at `sources/<key>` where
each image lies. A damaged or incomplete set is refused: a figure of what is left would bear the name of the whole.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.data.shards import Shards
from orchestrator.data.tar import Pieces
from orchestrator.data.tar import members as tar_members
from orchestrator.errors import Cancelled, DataError, UserError
from orchestrator.io.storage import Info, Storage
from orchestrator.plan.compile import Indexed

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestrator.store.artifacts import Store

SCHEME = "benchmark:"
"""How the sources of this module begin."""
VERSION = 1
"""Of the digest and of what is kept; sets known by another one are read once more."""
CLASSES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
TYPE, ASSOCIATIONS = "dataset_type.txt", "associations.jsonl"
TEXTS = (CLASSES, TEMPLATES, TYPE, ASSOCIATIONS)
IMAGES = ("webp", "png", "jpg", "jpeg")
GET = "fetch the set again (docs/evaluation.md says from where)"


@dataclass(frozen=True)
class Location:
    """A split of a set as it lies: the set's URL, the split's name, and what the listing says of its files.

    Attributes:
        texts: files of `TEXTS` that are there, sorted.
        shards: in the order of their numbers.
    """

    url: str
    split: str
    texts: tuple[Info, ...]
    shards: tuple[Info, ...]

    @property
    def name(self) -> str:
        """The set's folder."""
        return self.url.rstrip("/").rpartition("/")[2]

    @property
    def place(self) -> str:
        """`sources/<key>`: changes when one of its files does."""
        files = [[info.key, info.size, info.etag] for info in (*self.texts, *self.shards)]
        listing = json.dumps(["benchmark", VERSION, self.url, files])
        return f"sources/{hashlib.sha256(listing.encode()).hexdigest()}"


def locate(source: str) -> Location:
    """List a split of a set; UserError if there is none, DataError if it is incomplete."""
    folder, _, split = source.removeprefix(SCHEME).rpartition("/")
    storage = Storage.open(folder)
    there = {info.key: info for info in storage.list("") if info.key in TEXTS or info.key.startswith(f"{split}/")}
    count = f"{split}/nshards.txt"
    if count not in there:
        raise UserError(
            f"there is no benchmark set at '{folder}/{split}': it has no nshards.txt",
            "name a folder of sets as CLIP_benchmark and DataComp lay them out: "
            "<set>/test/0.tar, <set>/test/nshards.txt, <set>/classnames.txt (docs/evaluation.md)",
        )
    written = storage.get(count).decode().strip()
    if not written.isdecimal() or not int(written):
        raise DataError(f"'{folder}/{count}' does not say a number of shards but '{written[:20]}'", GET)
    wanted = [f"{split}/{number}.tar" for number in range(int(written))]
    missing = [key for key in wanted if key not in there]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(wanted)} shards of '{folder}' are missing, the first is {missing[0]}", GET
        )
    texts = tuple(there[name] for name in sorted(TEXTS) if name in there)
    return Location(storage.url, split, texts, tuple(there[key] for key in wanted))


def identify(source: str, store: Store) -> Indexed | None:
    """The content digest of a set and its place in the store if it has been read, else None; reads a listing.

    None also where there is no such set, so that a recipe can be planned before its data are there: `prepare` says it.
    """
    try:
        place = locate(source).place
    except UserError:
        return None
    marker = _marker(place, store)
    return Indexed(marker["content_digest"], place) if marker else None


def prepare(
    source: str,
    store: Store,
    cancel: Callable[[], object] = lambda: None,
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Read a set once and return its content digest. Of several at once each reads, and all keep the same.

    `cancel` is asked between shards and stops with Cancelled when it answers something true. UserError if there is no
    such set, DataError if it is incomplete or damaged.
    """
    location = locate(source)
    if marker := _marker(location.place, store):
        return marker["content_digest"]
    storage = Storage.open(location.url)
    texts = {info.key: _decoded(storage, info.key) for info in location.texts}
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
    rows: list[dict[str, Any]] = []
    for number, shard in enumerate(location.shards):
        if cancel():
            raise Cancelled(f"reading of '{source}' was stopped after {number} of {len(location.shards)} shards")
        for sample_digest, row in _samples(storage, shard, number, location):
            digest.update(sample_digest)
            rows.append(row)
        on_shard(number + 1, len(location.shards))
    if locate(source) != location:
        raise DataError(f"the files of '{source}' changed while they were read", "submit again: they are read anew")
    _keep(store, location, texts, rows, digest.hexdigest())
    return digest.hexdigest()


def _keep(
    store: Store, location: Location, texts: Mapping[str, str], rows: Sequence[Mapping[str, Any]], digest: str
) -> None:
    """Write what was found, the marker last."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=_schema()), buffer, compression="zstd")
    store.storage.put(f"{location.place}/samples.parquet", buffer.getvalue().to_pybytes())
    store.storage.put(f"{location.place}/texts.json", json.dumps(texts).encode())
    marker = {
        "benchmark_version": VERSION,
        "source": f"{SCHEME}{location.url}/{location.split}",
        "name": location.name,
        "url": location.url,
        "shards": [[shard.key, shard.size] for shard in location.shards],
        "rows": len(rows),
        "content_digest": digest,
    }
    store.storage.put(f"{location.place}.json", json.dumps(marker, indent=1).encode())


def _marker(place: str, store: Store) -> dict[str, Any] | None:
    try:
        return json.loads(store.storage.get(f"{place}.json"))
    except FileNotFoundError:
        return None


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("key", pa.string()),
            ("shard", pa.uint32()),
            ("offset", pa.uint64()),
            ("bytes", pa.uint64()),
            ("label", pa.int32()),
            ("captions", pa.list_(pa.string())),
            ("facts", pa.list_(pa.float64())),
        ]
    )


def _samples(storage: Storage, shard: Info, number: int, location: Location) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """(digest of all members, row of the table) of each sample of a shard; DataError naming what is wrong."""
    name, members = "", dict[str, tuple[int, bytes]]()
    try:
        with Pieces(storage, shard.key, shard.size) as pieces:
            for member in tar_members(pieces.read, shard.size):
                folder, slash, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if folder + slash + stem != name and members:
                    yield _sample(name, members, number)
                    members = {}
                name = folder + slash + stem
                content = pieces.read(member.offset, member.offset + member.size)
                members[suffix.lower()] = (member.offset, content)
        if members:
            yield _sample(name, members, number)
    except (ValueError, EOFError) as error:  # of the archive, or of a member
        where = f" at sample '{name}'" if name else ""
        what = str(error) or "it is no whole tar archive"
        raise DataError(f"{shard.key} of '{location.url}' is damaged{where}: {what}", GET) from None


def _sample(name: str, members: Mapping[str, tuple[int, bytes]], shard: int) -> tuple[bytes, dict[str, Any]]:
    """Digest and row of one sample; ValueError if it has no image, or what it says cannot be read."""
    image = next((suffix for suffix in IMAGES if suffix in members), None)
    if image is None:
        raise ValueError("it has no image")
    content = {suffix: data for suffix, (_, data) in members.items()}
    words = [word for s in sorted(content) for word in (s.encode(), hashlib.sha256(content[s]).digest())]
    offset, data = members[image]
    row = {"key": name, "shard": shard, "offset": offset, "bytes": len(data)}
    return hashlib.sha256(b"\0".join(words)).digest(), row | _answers(content)


def _answers(content: Mapping[str, bytes]) -> dict[str, Any]:
    """What a sample says beside its image. ValueError if it cannot be read."""
    import numpy as np

    label, captions, facts = content.get("cls"), content.get("txt"), content.get("npy")
    lines = [line.strip() for line in captions.decode().split("\n")] if captions is not None else []
    numbers = np.load(io.BytesIO(facts), allow_pickle=False).ravel() if facts is not None else None
    return {
        "label": int(label) if label is not None else None,
        "captions": [line for line in lines if line],
        "facts": numbers.astype(np.float64).tolist() if numbers is not None else None,
    }


class BenchmarkSet:
    """A set that has been read: texts and answers in memory, images where they lie.

    Attributes:
        name: the set's folder.
        kind: "classification", "multilabel", "retrieval" or "associations".
        digest: of its content.
        classes, templates: of a classification; a template has `{c}` in the class name's place.
        labels: [n] int64 class of each sample, -1 for none.
        captions: of each sample.
        facts: [n, m] float64, or None.
        keys: of each sample.
        associations: items of `ASSOCIATIONS`.
    """

    def __init__(self, place: str, store: Store) -> None:
        """Open what `prepare` left at a place; DataError if the set's shards are not what was read, in sight of here,
        or what it says is not enough to ask questions.
        """
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        marker = _marker(place, store)
        if marker is None:
            raise DataError(f"what was kept of a benchmark set at {place} is gone", "submit again: it is read anew")
        texts = json.loads(store.storage.get(f"{place}/texts.json"))
        table = pq.read_table(pa.BufferReader(store.storage.get(f"{place}/samples.parquet")))
        self.name, self.digest = marker["name"], marker["content_digest"]
        self.kind = texts.get(TYPE, "").strip() or "classification"
        self.classes, self.templates = _lines(texts, CLASSES), _lines(texts, TEMPLATES)
        self.labels = np.asarray(table["label"].fill_null(-1)).astype(np.int64)
        self.captions: list[list[str]] = table["captions"].to_pylist()
        facts = table["facts"].to_pylist()
        self.facts = np.array(facts) if facts and None not in facts else None
        self.keys: list[str] = table["key"].to_pylist()
        self.associations = _items(texts, self.name)
        self._shard, self._offset, self._bytes = (
            np.asarray(table[name]).astype(np.int64) for name in ("shard", "offset", "bytes")
        )
        sizes = dict(marker["shards"])
        self._shards = Shards(Storage.open(marker["url"]), "", list(sizes))
        self._shards.check(list(sizes.values()))

    def __len__(self) -> int:
        return len(self.keys)

    def images(self, rows: Sequence[int]) -> list[bytes]:
        """The encoded images of some samples; DataError if a shard is gone or shorter than it was."""
        found: dict[int, bytes] = {}
        for shard in sorted({int(self._shard[row]) for row in rows}):
            here = [row for row in rows if self._shard[row] == shard]
            starts = [int(self._offset[row]) for row in here]
            ends = [int(self._offset[row] + self._bytes[row]) for row in here]
            found |= dict(zip(here, self._shards.read(shard, starts, ends)))
        return [found[row] for row in rows]


def _decoded(storage: Storage, key: str) -> str:
    try:
        return storage.get(key).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{storage.where(key)} is not UTF-8: {error}", GET) from None


def _lines(texts: Mapping[str, str], name: str) -> list[str]:
    """A text's lines; an empty one within is one, for labels count lines."""
    return texts.get(name, "").rstrip().splitlines()


def _items(texts: Mapping[str, str], name: str) -> list[dict[str, Any]]:
    """Items of associations; DataError naming the first line that is none."""
    found = []
    for number, line in enumerate(_lines(texts, ASSOCIATIONS), 1):
        try:
            item = json.loads(line)
            found.append({"cue": str(item["cue"]), **{k: list(item[k]) for k in ("candidates", "associations")}})
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"line {number} of {ASSOCIATIONS} of benchmark set '{name}' is no item: {line[:40]}",
                'write {"cue": "...", "candidates": ["...", ...], "associations": ["...", ...]}',
            ) from None
    return found
