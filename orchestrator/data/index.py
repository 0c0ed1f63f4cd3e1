"""Indexing: what is in the tar shards, where, and whether it is usable, without decoding a pixel.

A sample is a run of neighbouring tar members that share a key (path up to the first dot of the file name; img2dataset,
webdataset). It needs an image (jpg, jpeg, png, webp) and a caption (`txt`, else the json's `caption`). `index_shard`
is a pure function of one shard, so shards can be indexed anywhere in any order; `merge` numbers equal pairs over all
shards and writes the tables.

- uid: first 16 bytes of SHA-256(SHA-256(image bytes) | SHA-256(primary caption, UTF-8) | count of equal pairs before
  it, 8 bytes little-endian). All parts have a fixed width, so different samples never spell the same bytes.
- sample digest: SHA-256 over every member in suffix order (suffix, NUL, SHA-256 of the bytes): what the json says
  counts too.
- content digest: SHA-256 over (uid | sample digest) in uid order: neither shard names nor sample order count.

Whatever is left out is counted with its reason. `INDEX_VERSION` (orchestrator/data) is raised when the same bytes give
another index.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BufferedReader, RawIOBase
from pathlib import Path
from statistics import median_low
from typing import IO, TYPE_CHECKING, Any

from orchestrator.data.bad import BadSample, BadSamples
from orchestrator.data.captions import SLOTS, UNKNOWN
from orchestrator.data.pictures import PictureTooLarge, open_picture
from orchestrator.data.tables import FORMATS, LABELS, bytes_column, schemas, write_table
from orchestrator.io.storage import Storage

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

IMAGE_SUFFIXES = {"jpg": "jpg", "jpeg": "jpg", "png": "png", "webp": "webp"}
MAX_NAME = 1024
READ_BYTES = 8 << 20
TRUNCATED = "shard is truncated"
NO_TAR = "shard is not a tar archive"
LOST = "lost with a damaged shard (estimated)"


def sample_uid(image_sha256: bytes, caption_sha256: bytes, count: int) -> bytes:
    """16 bytes from the two digests (32 bytes each) and the number of equal pairs before this one."""
    return hashlib.sha256(image_sha256 + caption_sha256 + count.to_bytes(8, "little")).digest()[:16]


def part_schema() -> pa.Schema:
    """One row a sample, as `index_shard` yields it: the final columns, and the digests that `merge` needs."""
    import pyarrow as pa

    parts = schemas()
    base = [f for f in parts["index"] if f.name not in ("shard", "image_digest")]
    digests = [pa.field(name, pa.binary(32)) for name in ("image_sha256", "caption_sha256", "sample_digest")]
    groups = [f for name in ("captions", "source", "sizes", "labels") for f in parts[name]]
    return pa.schema([*base, *digests, *groups])


def index_shard(storage: Storage, key: str) -> pa.Table:
    """Index one tar shard: rows of `part_schema` in tar order; `dropped` in the schema's metadata is JSON."""
    import pyarrow as pa

    dropped = BadSamples()
    rows = list(_rows(storage, key, dropped))
    schema = part_schema().with_metadata({"dropped": json.dumps(dropped.as_json())})
    return pa.Table.from_pylist(rows, schema=schema)


def _rows(storage: Storage, key: str, dropped: BadSamples) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    with open_object(storage, key) as file:
        for name, members in _samples(file, key, dropped):
            try:
                if name in seen:
                    raise BadSample("key comes back later in the shard")
                seen.add(name)
                yield _row(file, name, members)
            except BadSample as bad:
                dropped.add(bad.reason, f"{key}/{name}")


def _samples(
    file: IO[bytes], key: str, dropped: BadSamples
) -> Iterator[tuple[str, list[tuple[str, tarfile.TarInfo]]]]:
    """Runs of members with one key: (key, [(suffix, member), ...])."""
    name = ""
    members: list[tuple[str, tarfile.TarInfo]] = []
    for member in _members(file, key, dropped):
        path = member.name.removeprefix("./")
        reason = _refusal(member, path)
        if reason is not None:
            dropped.add(reason, f"{key}/{path!a}"[:200])
            continue
        folder, slash, base = path.rpartition("/")
        stem, dot, suffix = base.partition(".")
        if not (stem and dot):  # a README, a hidden file: no sample's member (webdataset skips them too)
            continue
        if folder + slash + stem != name:
            if members:
                yield name, members
            name, members = folder + slash + stem, []
        members.append((suffix.lower(), member))
    if members and TRUNCATED in dropped.counts:  # nobody can tell whether it has members beyond the damage
        dropped.add("last sample before the damage", f"{key}/{name}")
    elif members:
        yield name, members


def _refusal(member: tarfile.TarInfo, path: str) -> str | None:
    """Why a member must not be used, or None. Nothing is unpacked, but keys travel on into tables and shards."""
    if path.startswith("/") or ".." in path.split("/") or "\\" in path or ":" in path[1:2] or len(path) > MAX_NAME:
        return "hostile member name"
    if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) <= 0xDFFF for c in path):
        return "hostile member name"
    if not member.isreg() or member.issparse():
        return "not a regular file"
    return None


def _members(file: IO[bytes], key: str, dropped: BadSamples) -> Iterator[tarfile.TarInfo]:
    """Members of a tar but its folders, up to where it is damaged, which is counted."""
    size = file.seek(0, 2)
    file.seek(0)
    try:
        tar = tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
    except (tarfile.TarError, ValueError, EOFError):
        dropped.add(NO_TAR, key)
        return
    while True:
        try:
            member = tar.next()
        except (tarfile.TarError, ValueError, EOFError):
            dropped.add(TRUNCATED, key)
            return
        if member is None:
            break
        tar.members.clear()  # type: ignore[attr-defined]  # it keeps every member otherwise
        if member.offset_data + member.size > size and not member.issparse():  # that one has its own refusal
            dropped.add(TRUNCATED, key)
            return
        if not member.isdir():
            yield member
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:  # tarfile ends silently at a damaged header
        dropped.add(TRUNCATED, key)


def _row(file: IO[bytes], name: str, members: Sequence[tuple[str, tarfile.TarInfo]]) -> dict[str, Any]:
    """One sample's row; BadSample with the reason if it cannot be used."""
    by_suffix = dict(members)
    if len(by_suffix) < len(members):
        raise BadSample("two members with one suffix")
    data = {}
    for suffix, member in members:
        file.seek(member.offset_data)
        data[suffix] = file.read(member.size)
    image = next((s for s in IMAGE_SUFFIXES if s in data), None)
    if image is None:
        raise BadSample("no image")
    facts = _facts(data.get("json"))
    primary = _primary_caption(data.get("txt"), facts)
    width, height = _size(data[image])
    digests = {suffix: hashlib.sha256(content).digest() for suffix, content in data.items()}
    caption_digest = hashlib.sha256(primary.encode()).digest()
    row: dict[str, Any] = {
        "uid": sample_uid(digests[image], caption_digest, 0),
        "image_sha256": digests[image],
        "caption_sha256": caption_digest,
        "sample_digest": hashlib.sha256(b"".join(s.encode() + b"\0" + digests[s] for s in sorted(digests))).digest(),
        "format": FORMATS.index(IMAGE_SUFFIXES[image]),
        "captions": _captions(primary, facts),
        "key": name,
        "source_uid": _text(facts.get("uid")),
        "width": width,
        "height": height,
    }
    for column, suffix in (("image", image), ("text", "txt"), ("json", "json")):
        found = by_suffix.get(suffix)
        row[f"{column}_offset"] = found.offset_data if found else 0
        row[f"{column}_bytes"] = found.size if found else 0
    return row | {label: _text(facts.get(label)) for label in LABELS}


def _facts(content: bytes | None) -> dict[str, Any]:
    try:
        facts = json.loads(content) if content is not None else {}
    except (ValueError, RecursionError):
        raise BadSample("json cannot be read") from None
    if not isinstance(facts, dict):
        raise BadSample("json cannot be read")
    return facts


def _primary_caption(text: bytes | None, facts: Mapping[str, Any]) -> str:
    try:
        caption = text.decode("utf-8") if text is not None else facts.get("caption")
        caption = "" if caption is None else caption
        if not isinstance(caption, str):
            raise BadSample("caption is not text")
        caption = caption.strip()
        caption.encode()  # json may spell half a surrogate pair
    except UnicodeError:
        raise BadSample("caption is not UTF-8") from None
    if not caption:
        raise BadSample("no caption")
    return caption


def _captions(primary: str, facts: Mapping[str, Any]) -> list[dict[str, str]]:
    """The primary caption, then those that the json has under `captions` (or, for keywords, beside it) by slot."""
    given = facts.get("captions")
    given = given if isinstance(given, dict) else {}
    lang = _text(facts.get("lang")) or UNKNOWN
    found = [{"slot": "original", "lang": lang, "text": primary}]
    for slot in SLOTS[1:]:
        value = given.get(slot, facts.get(slot) if slot == "keywords" else None)
        text = ", ".join(map(str, value)) if isinstance(value, list) else value
        if isinstance(text, str) and text.strip():
            found.append({"slot": slot, "lang": lang, "text": text.strip().encode(errors="replace").decode()})
    return found


def _text(value: Any) -> str | None:
    return None if value is None else str(value).encode(errors="replace").decode()


def _size(image: bytes) -> tuple[int, int]:
    """Width and height from the image's header."""
    try:
        with open_picture(image) as opened:
            return opened.size
    except MemoryError:
        raise
    except PictureTooLarge:
        raise BadSample("image is too large") from None
    except Exception:  # PIL's format plugins raise all sorts on bad bytes
        raise BadSample("not an image") from None


class _ObjectFile(RawIOBase):
    """A stored object as a seekable file."""

    def __init__(self, storage: Storage, key: str, size: int) -> None:
        self._storage, self._key, self._size, self._position = storage, key, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + {0: 0, 1: self._position, 2: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._size)
        if end <= self._position:
            return 0
        data = self._storage.get_ranges(self._key, [self._position], [end])[0]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def open_object(storage: Storage, key: str) -> IO[bytes]:
    """A stored object as a seekable file, read in large pieces when it is not on this machine's disk."""
    path = storage.local(key)
    if path is not None:
        return path.open("rb")
    info = storage.head(key)
    if info is None:
        raise FileNotFoundError(key)
    return BufferedReader(_ObjectFile(storage, key, info.size), READ_BYTES)


def merge(parts: Sequence[Callable[[], pa.Table]], out: Path) -> dict[str, Any]:
    """Join the parts of all shards (in shard order, loaded anew for each table) into a Dataset's tables in `out`.

    Returns rows, content digest, column groups, and what was left out. Holds 64 bytes a sample in memory (12 million:
    0.8 GB).
    """
    import numpy as np
    import pyarrow as pa

    uids, samples, dropped = [], [], []
    labels: set[str] = set()
    for part in parts:
        table = part()
        dropped.append(BadSamples())
        dropped[-1].merge(json.loads(table.schema.metadata[b"dropped"]))
        labels.update(label for label in LABELS if table[label].null_count < len(table))
        uids.append(bytes_column(table["uid"], 16))
        samples.append(bytes_column(table["sample_digest"], 32))
    before = [len(u) for u in uids]
    uid = np.concatenate([*uids, np.empty((0, 16), np.uint8)])
    counts = _equal_before(uid)
    renumbered = {int(row): int(counts[row]) for row in np.flatnonzero(counts)}
    groups = schemas()
    unknown = [label for label in LABELS if label not in labels]
    groups["labels"] = pa.schema([field for field in groups["labels"] if field.name not in unknown])
    groups = {group: schema for group, schema in groups.items() if len(schema)}
    for group, schema in groups.items():
        pieces = (_final(part(), shard, sum(before[:shard]), renumbered) for shard, part in enumerate(parts))
        write_table(out / f"{group}.parquet", pieces if group == "index" else (p() for p in parts), schema)
    uid = bytes_column(_read_uids(out / "index.parquet"), 16)
    digest = content_digest(uid, np.concatenate([*samples, np.empty((0, 32), np.uint8)]))
    columns = {group: f"{group}.parquet" for group in groups if group != "index"}
    left_out = _all_dropped(before, dropped)
    return {"rows": len(uid), "content_digest": digest, "columns": columns, "dropped": left_out.as_json()}


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
    return hashlib.sha256(np.concatenate([uids, sample_digests], axis=1)[order].tobytes()).hexdigest()


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


def _final(part: pa.Table, shard: int, start: int, renumbered: Mapping[int, int]) -> pa.Table:
    """A part with the columns of the base index: final uids, shard number, image digest."""
    import pyarrow as pa

    images, captions = part["image_sha256"].to_pylist(), part["caption_sha256"].to_pylist()
    uids = part["uid"].to_pylist()
    for row in range(len(uids)):
        if count := renumbered.get(start + row):
            uids[row] = sample_uid(images[row], captions[row], count)
    part = part.set_column(part.schema.get_field_index("uid"), "uid", pa.array(uids, pa.binary(16)))
    part = part.append_column("image_digest", pa.array([i[:16] for i in images], pa.binary(16)))
    return part.append_column("shard", pa.array([shard] * len(part), pa.uint32()))


def _read_uids(path: Path) -> pa.ChunkedArray:
    import pyarrow.parquet as pq

    return pq.read_table(path, columns=["uid"])["uid"]
