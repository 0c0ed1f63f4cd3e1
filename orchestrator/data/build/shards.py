"""Deterministic WebDataset shards, and the digest that says what is in them.

A shard's bytes depend on its samples alone: fixed tar headers, members in a fixed order. The content digest goes
further: it is taken over decoded pixels and captions, so it stays the same when a newer library compresses an image
into other bytes.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.data.pictures import open_picture

IMAGE_SUFFIXES = ("webp", "png", "jpg")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def shuffled(names: Iterable[str], seed: int) -> list[str]:
    """Distinct names in an order keyed by the seed: the same in every version of every library."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())


def to_json(record: Mapping[str, Any]) -> bytes:
    """Compact UTF-8 JSON; keys in the given order."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Append a file with a header that holds its name and size, and nothing of this machine or moment."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    header.mode = 0o644
    header.mtime = header.uid = header.gid = 0
    header.uname = header.gname = ""
    tar.addfile(header, io.BytesIO(data))


def bounds(total: int, largest: int) -> list[int]:
    """Where shards begin, and the end: as few, nearly equal shards as `largest` samples a shard allow."""
    count = math.ceil(total / largest)
    return [total * k // count for k in range(count + 1)] if count else [0]


def write_shard(path: Path, samples: Iterable[Mapping[str, bytes]], first_key: int) -> dict[str, Any]:
    """Write samples (member suffix -> bytes) into one shard; its name, samples, bytes and sha256.

    Keys are running numbers from `first_key`.
    """
    key = first_key
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            for suffix, data in sample.items():
                add_member(tar, f"{key:06d}.{suffix}", data)
            key += 1
    return {
        "name": path.name,
        "samples": key - first_key,
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
    }


def write_shards(
    folder: Path, prefix: str, samples: Iterable[Mapping[str, bytes]], total: int, largest: int, first_key: int = 0
) -> list[dict[str, Any]]:
    """Write `total` samples into shards of `largest` samples at most; `write_shard`'s facts of each."""
    edges = bounds(total, largest)
    stream = iter(samples)
    return [
        write_shard(folder / f"{prefix}-{k:05d}.tar", itertools.islice(stream, stop - start), first_key + start)
        for k, (start, stop) in enumerate(itertools.pairwise(edges))
    ]


def read_shards(paths: Sequence[Path]) -> Iterator[dict[str, bytes]]:
    """Samples of shards written here: member suffix -> bytes, and `__key__`."""
    for path in paths:
        sample: dict[str, Any] = {}
        with tarfile.open(path, "r|") as tar:
            for member in tar:
                key, suffix = member.name.split(".", 1)
                if sample.get("__key__") != key:
                    if sample:
                        yield sample
                    sample = {"__key__": key}
                stream = tar.extractfile(member)
                assert stream is not None
                sample[suffix] = stream.read()
        if sample:
            yield sample


def sample_digest(sample: Mapping[str, bytes]) -> bytes:
    """SHA-256 over size and RGBA pixels, the primary caption, and the record less the hash of the encoded image.

    What nobody would decode counts with its bytes: a picture that is too large, or none.
    """
    encoded = next(sample[s] for s in IMAGE_SUFFIXES if s in sample)
    try:
        image = open_picture(encoded).convert("RGBA")
        picture = [f"{image.width}x{image.height}".encode(), image.tobytes()]
    except (OSError, SyntaxError, ValueError):
        picture = [b"undecoded", encoded]
    record = {key: value for key, value in json.loads(sample["json"]).items() if key != "sha256"}
    digest = hashlib.sha256()
    for part in (*picture, sample["txt"], _canonical(record)):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def shard_digests(path: Path) -> list[bytes]:
    """The digests of a shard's samples."""
    return [sample_digest(sample) for sample in read_shards([path])]


def content_digest(folder: Path, each: Callable[..., Iterable[list[bytes]]] = map) -> str:
    """SHA-256 over the sorted digests of all samples, and of all rows of `captions.parquet` where there is one.

    Neither the order of samples, nor their keys, nor how they are spread over shards and compressed has an influence.
    `each`: how `shard_digests` is applied to the shards, one after the other by default.
    """
    digests = [digest for shard in each(shard_digests, sorted(folder.glob("*.tar"))) for digest in shard]
    captions = folder / "captions.parquet"
    if captions.is_file():
        import pyarrow.parquet as pq

        for batch in pq.ParquetFile(captions).iter_batches():
            digests += [hashlib.sha256(_canonical(row)).digest() for row in batch.to_pylist()]
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def _canonical(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
