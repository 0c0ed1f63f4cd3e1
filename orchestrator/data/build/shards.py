"""Deterministic WebDataset shards, and the digest that says what is in them.

A shard's bytes depend on its samples alone: fixed tar headers, members in a fixed order. The content digest goes
further: it is taken over decoded pixels and captions, so it stays the same when a newer library compresses an image
into other bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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


def write_shards(
    folder: Path, prefix: str, samples: Iterable[Mapping[str, bytes]], total: int, largest: int, first_key: int = 0
) -> list[dict[str, Any]]:
    """Write samples (member suffix -> bytes) into as few, nearly equal shards as `largest` samples a shard allow.

    Keys are running numbers from `first_key`. Returns name, samples, bytes and sha256 of each shard.
    """
    count = math.ceil(total / largest)
    bounds = [total * k // count for k in range(count + 1)]
    stream = iter(samples)
    shards = []
    for k in range(count):
        path = folder / f"{prefix}-{k:05d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for position in range(bounds[k], bounds[k + 1]):
                for suffix, data in next(stream).items():
                    add_member(tar, f"{first_key + position:06d}.{suffix}", data)
        shards.append(
            {
                "name": path.name,
                "samples": bounds[k + 1] - bounds[k],
                "bytes": path.stat().st_size,
                "sha256": file_sha256(path),
            }
        )
    return shards


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
    """SHA-256 over size and RGBA pixels, the primary caption, and the record less the hash of the encoded image."""
    from PIL import Image

    image = Image.open(io.BytesIO(next(sample[s] for s in IMAGE_SUFFIXES if s in sample))).convert("RGBA")
    record = {key: value for key, value in json.loads(sample["json"]).items() if key != "sha256"}
    digest = hashlib.sha256()
    for part in (f"{image.width}x{image.height}".encode(), image.tobytes(), sample["txt"], _canonical(record)):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def content_digest(folder: Path) -> str:
    """SHA-256 over the sorted digests of all samples, and of all rows of `captions.parquet` where there is one.

    Neither the order of samples, nor their keys, nor how they are spread over shards and compressed has an influence.
    """
    digests = [sample_digest(sample) for sample in read_shards(sorted(folder.glob("*.tar")))]
    captions = folder / "captions.parquet"
    if captions.is_file():
        import pyarrow.parquet as pq

        for batch in pq.ParquetFile(captions).iter_batches():
            digests += [hashlib.sha256(_canonical(row)).digest() for row in batch.to_pylist()]
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def _canonical(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
