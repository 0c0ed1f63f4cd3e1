"""Shards that strangers made to do harm: refused and counted, with nothing written, followed, started or swallowed."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import pytest
from data_shards import image, sample, write_shard

from orchestrator.data.bad import BadSample
from orchestrator.data.index import index_shard
from orchestrator.data.preprocess import load
from orchestrator.io.storage import Storage

TYPES = {
    "symbolic link": (tarfile.SYMTYPE, "/etc/passwd"),
    "symbolic link upwards": (tarfile.SYMTYPE, "../../secret"),
    "hard link": (tarfile.LNKTYPE, "first.png"),
    "character device": (tarfile.CHRTYPE, ""),
    "block device": (tarfile.BLKTYPE, ""),
    "pipe": (tarfile.FIFOTYPE, ""),
}
NAMES = {
    "upwards": "../../a.png",
    "upwards inside": "x/../../a.png",
    "absolute": "/etc/cron.d/a.png",
    "backslash": "..\\a.png",
    "drive": "C:\\a.png",
    "line break": "x\na.png",
    "escape sequence": "\x1b[2Ja.png",
    "not UTF-8": "a\udcff.png",
}


class Harm:
    """Unpickling it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def hostile_shard(path: Path, *infos: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> Path:
    """A good sample, the members given, another good sample."""
    with tarfile.open(path, "w", format=format, errors="surrogateescape") as tar:
        for member in [*sample("first", 1), None, *sample("last", 2)]:
            for info, content in infos if member is None else [(tarfile.TarInfo(member[0]), member[1])]:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def indexed(path: Path) -> tuple[list[str], dict[str, int]]:
    """Keys of the samples that are used, and the reasons for which others are not."""
    table = index_shard(Storage.open(str(path.parent)), path.name)
    return table["key"].to_pylist(), json.loads(table.schema.metadata[b"dropped"])["counts"]


@pytest.mark.parametrize(("kind", "target"), TYPES.values(), ids=TYPES)
def test_only_regular_files_are_members(tmp_path, kind, target):
    info = tarfile.TarInfo("bad.png")
    info.type, info.linkname = kind, target
    assert indexed(hostile_shard(tmp_path / "0.tar", (info, b""))) == (["first", "last"], {"not a regular file": 1})


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name, format):
    path = hostile_shard(tmp_path / "0.tar", (tarfile.TarInfo(name), image(3)), format=format)
    assert indexed(path) == (["first", "last"], {"hostile member name": 1})


def test_a_name_ends_where_its_first_nul_is(tmp_path):
    path = hostile_shard(tmp_path / "0.tar", (tarfile.TarInfo("aaaa.png"), image(3)))
    data = path.read_bytes()
    header = bytearray(data[(at := data.index(b"aaaa.png")) : at + 512])
    header[4:5] = b"\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(data[:at] + bytes(header) + data[at + 512 :])
    assert indexed(path)[0] == ["first", "last"]


def test_a_very_long_name_is_no_burden(tmp_path):
    name = "d/" * 50_000 + "a.png"
    keys, dropped = indexed(hostile_shard(tmp_path / "0.tar", (tarfile.TarInfo(name), image(3))))
    assert keys == ["first", "last"]
    assert dropped == {"hostile member name": 1}


def test_a_sparse_file_is_refused_whatever_size_it_claims(tmp_path):
    info = tarfile.TarInfo("bad.png")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 50)}
    content = b"1\n0\n512\n".ljust(512, b"\0") + b"x" * 512
    keys, dropped = indexed(hostile_shard(tmp_path / "0.tar", (info, content)))
    assert (keys, dropped) == (["first", "last"], {"not a regular file": 1})


def test_a_member_that_claims_more_than_the_shard_has_costs_no_memory(tmp_path):
    path = write_shard(tmp_path / "0.tar", sample("first", 1))
    info = tarfile.TarInfo("bomb.png")
    info.size = 1 << 40
    whole = path.read_bytes().rstrip(b"\0")
    whole += b"\0" * (-len(whole) % 512)
    path.write_bytes(whole + info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024)
    tracemalloc.start()
    keys, dropped = indexed(path)
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
    assert keys == []  # the last sample before the damage is not surely whole
    assert dropped["shard is truncated"] == 1


def test_a_pickled_member_is_bytes_and_nothing_more(tmp_path):
    harm = pickle.dumps(Harm(tmp_path / "harm"))
    members = [(tarfile.TarInfo(f"bad.{suffix}"), harm) for suffix in ("pyd", "pkl", "pickle", "pth")]
    picture = [(tarfile.TarInfo("bad.png"), image(3)), (tarfile.TarInfo("bad.txt"), b"a thing")]
    keys, _ = indexed(hostile_shard(tmp_path / "0.tar", *picture, *members))
    assert keys == ["first", "bad", "last"]
    assert not (tmp_path / "harm").exists()
    pickle.loads(harm)
    assert (tmp_path / "harm").exists(), "the pickle is harmless: this test proves nothing"


def png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims so many pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [9_000, 15_000, 200_000], ids=["above ours", "above Pillow's", "absurd"])
def test_a_picture_of_too_many_pixels_is_left_out_undecoded(tmp_path, side):
    members = [(tarfile.TarInfo("bad.png"), png(side, side)), (tarfile.TarInfo("bad.txt"), b"a bomb")]
    path = hostile_shard(tmp_path / "0.tar", *members)
    assert indexed(path) == (["first", "last"], {"image is too large": 1})
    with pytest.raises(BadSample):
        load(png(side, side))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(touch) system\n%%EOF\n"


@pytest.mark.parametrize("content", [EPS, b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.4\n"])
def test_formats_that_start_programs_are_no_pictures(tmp_path, content):
    members = [(tarfile.TarInfo("bad.png"), content), (tarfile.TarInfo("bad.txt"), b"a drawing")]
    path = hostile_shard(tmp_path / "0.tar", *members)
    assert indexed(path) == (["first", "last"], {"not an image": 1})
    with pytest.raises(BadSample):
        load(content)
