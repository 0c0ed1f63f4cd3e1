"""Tar archives by their headers: what `tarfile` finds in them, and how few bytes that takes."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import pytest

from orchestrator.data.tar import Damaged, Member, NotTar, Pieces, members
from orchestrator.io.storage import Storage

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def archive(rng: random.Random, format: int) -> bytes:
    """A few members of every kind, with names short and long, plain and not."""
    long = format != tarfile.USTAR_FORMAT
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format, encoding="utf-8", errors="surrogateescape") as tar:
        for _ in range(rng.randrange(8)):
            parts = ["".join(rng.choices("ab.é漢", k=rng.randrange(1, 60))) for _ in range(rng.randrange(1, 5))]
            info = tarfile.TarInfo("/".join(parts) if long else parts[0][:30])
            info.type = rng.choice([tarfile.REGTYPE] * 6 + [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
            if info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info.linkname = "l" * rng.randrange(1, 300 if long else 30)
            content = rng.randbytes(rng.randrange(3000)) if info.type == tarfile.REGTYPE else b""
            info.size, info.mtime = len(content), rng.choice([0, 1.5]) if format == tarfile.PAX_FORMAT else 0
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def found(data: bytes) -> list[Member]:
    return list(members(lambda start, end: data[start:end], len(data)))


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_archives_of_every_format_are_read_as_tarfile_reads_them(format):
    rng = random.Random(0)
    for _ in range(100):
        data = archive(rng, format)
        with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as tar:
            theirs = [(m.name, m.offset_data, m.size if m.isreg() else 0, m.isreg()) for m in tar if not m.isdir()]
        assert found(data) == theirs


def test_sizes_and_names_that_do_not_fit_a_header_are_found():
    """A member of 9 GB by GNU's and by pax's spelling: nothing of its data is asked for."""
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        info = tarfile.TarInfo("d/" * 100 + "a.png")
        info.size = 9 << 30
        head = info.tobuf(format)
        whole = len(head) + info.size + 1024

        def read(start: int, end: int, head: bytes = head) -> bytes:
            return head[start:end] if end <= len(head) else bytes(end - start)

        assert list(members(read, whole)) == [(info.name, len(head), info.size, True)]


def test_an_old_sparse_file_is_passed_over_with_its_map():
    info = tarfile.TarInfo("hole.png")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[482] = 1  # the map goes on in one more block
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    after = tarfile.TarInfo("a.png")
    data = bytes(header) + bytes(512) + b"x" * 512 + after.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    assert found(data) == [("hole.png", 1024, 512, False), ("a.png", 2048, 0, True)]


@pytest.mark.parametrize("cut", [1, 511, 513, 700, 1536])
def test_an_archive_that_ends_too_early_is_damaged(cut):
    info = tarfile.TarInfo("a.png")
    info.size = 600
    data = info.tobuf() + b"x" * 1024 + info.tobuf() + b"x" * 1024
    with pytest.raises(NotTar if cut < 512 else Damaged):
        found(data[:cut])
    with pytest.raises(Damaged):
        found(data)  # without the block of zeros nobody knows whether more was to come


@pytest.mark.parametrize("record", [b"nonsense", b"0 path=a\n", b"99 path=a\n", b"10 path=\n"])
def test_a_pax_header_that_makes_no_sense_is_damage(record):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    data = info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0")
    with pytest.raises(Damaged):
        found(data + tarfile.TarInfo("a").tobuf() + bytes(1024))


@pytest.mark.parametrize(("size", "share"), [(300_000, 0.06), (40_000, 0.35), (2_000, 1.01)])
def test_large_members_are_jumped_over_and_small_ones_read_through_in_few_requests(tmp_path, size, share):
    path, rng, number = Path(tmp_path / "0.tar"), random.Random(0), 6_000_000 // size
    with tarfile.open(path, "w") as tar:
        for key in range(number):
            for suffix, content in (("jpg", rng.randbytes(size)), ("txt", b"words" * 50)):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    whole = path.stat().st_size
    with Pieces(Storage.open(str(tmp_path)), "0.tar", whole, 8 << 10) as pieces:
        assert len(list(members(pieces.read, whole))) == 2 * number
    assert pieces.fetched <= share * whole
    assert pieces.requests <= (number + 2 if size > 16_000 else 60)


def test_pieces_are_the_bytes_whatever_was_read_before(tmp_path):
    data = random.Random(0).randbytes(300_000)
    (tmp_path / "x").write_bytes(data)
    rng = random.Random(1)
    with Pieces(Storage.open(str(tmp_path)), "x", len(data), 1 << 10) as pieces:
        for _ in range(500):
            start = rng.randrange(len(data))
            end = start + rng.randrange(20_000)
            assert pieces.read(start, end) == data[start:end]
