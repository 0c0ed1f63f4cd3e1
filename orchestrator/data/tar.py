"""Tar archives by their headers: what is in them and where, with nothing unpacked and nothing followed.

The formats are those that `tarfile` reads (ustar, GNU, pax: POSIX.1-2017 "pax", GNU tar's manual); long names and
sizes come in extra members before the one they are about. `tarfile` makes an object of every field, which costs more
than hashing a small image; here a header is a few slices, and only what an index needs is looked at.

`Pieces` is where the bytes come from: it reads ahead while nothing is skipped, and little after a jump. So reading all
of an archive takes requests of 8 MB, and reading the headers of one with large members takes a few kB for each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

from orchestrator.io.storage import Storage

BLOCK = 512
MAX_EXTRA = 1 << 20
"""Bytes of a long name or of a pax header. What claims more is damaged, or means harm."""
AHEAD_BYTES = 8 << 20
"""Most that is read ahead of an object elsewhere; who wants everything reads as much from the start."""
DISK_BYTES = 256 << 10
"""The same on a disk of this machine, where asking again costs less than new memory."""
JUMP_BYTES = 16 << 10
"""A gap worth a request of its own. Object stores ask about as much for a request as for 20 kB to another region."""

_END = bytes(BLOCK)
_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_DATA = b"123456"
"""Links, devices, folders, pipes: whatever size they claim."""


class NotTar(ValueError):
    """The first header is none."""


class Damaged(ValueError):
    """The archive ends too early, or goes on with something else than a header."""


class Member(NamedTuple):
    """A file in an archive: name (bytes that are not UTF-8 as surrogates), place, and whether it is a plain file."""

    name: str
    offset: int
    size: int
    regular: bool


def members(read: Callable[[int, int], bytes], size: int) -> Iterator[Member]:
    """Everything in an archive of `size` bytes but its folders, in order; `read(start, end)` gives its bytes.

    Raises NotTar, or Damaged after the last member that is whole.
    """
    at, extra, everywhere = 0, dict[str, str](), dict[str, str]()
    while (header := read(at, at + BLOCK)) != _END:
        length = _length(header)
        if length is None:
            raise Damaged if at else NotTar
        at += BLOCK
        kind = header[156:157]
        if kind in b"LKxXg":
            if length > MAX_EXTRA or at + length > size:
                raise Damaged
            content = read(at, at + length)
            if kind == b"L":
                extra["path"] = _text(content)
            elif kind in b"xX":
                extra |= _records(content)
            elif kind == b"g":
                everywhere |= _records(content)
            at += _padded(length)
            continue
        facts = everywhere | extra if everywhere else extra
        name = facts.get("path") or _name(header)
        sparse = kind == b"S" or any(key.startswith("GNU.sparse") for key in facts)
        if kind == b"S":
            at = _after_sparse_map(read, at, header)
        if "size" in extra:
            length = _decimal(extra["size"])
        if kind in _WITHOUT_DATA:
            length = 0
        if at + length > size:
            raise Damaged
        if kind != b"5" and not name.endswith("/"):
            yield Member(name, at, length, kind in _REGULAR and not sparse)
        at += _padded(length)
        extra = {}


def _length(header: bytes) -> int | None:
    """The size a header states; None if it is no header: too short, or its check sum is wrong."""
    if len(header) < BLOCK:
        return None
    total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    stated = _number(header[148:156])
    if stated != total and stated != total - 256 * sum(byte > 127 for byte in header):  # some tars add signed bytes
        return None
    return _number(header[124:136])


def _number(field: bytes) -> int | None:
    """A numeric field: octal digits, or (GNU) a 1 bit and then a big-endian number. None if it is neither."""
    if field[0] == 0o200:
        return int.from_bytes(field[1:], "big")
    try:
        return max(0, int(field.partition(b"\0")[0].strip() or b"0", 8))
    except ValueError:
        return None


def _name(header: bytes) -> str:
    name, prefix = _text(header[:100]), _text(header[345:500])
    return f"{prefix}/{name}" if prefix and header[156:157] != b"S" else name


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _records(content: bytes) -> dict[str, str]:
    """The records of a pax header, each `LENGTH KEY=VALUE` and a line break; Damaged if they are not."""
    found, at = dict[str, str](), 0
    while at < len(content) and content[at]:
        digits, _, _ = content[at : at + 20].partition(b" ")
        length = _decimal(digits)
        key, sign, value = content[at + len(digits) + 1 : at + length].partition(b"=")
        if not sign or not value.endswith(b"\n") or at + length > len(content):
            raise Damaged
        found[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
        at += length
    return found


def _decimal(digits: str | bytes) -> int:
    if not digits.isdigit():
        raise Damaged
    return int(digits)


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def _after_sparse_map(read: Callable[[int, int], bytes], at: int, header: bytes) -> int:
    """Where the data of an old GNU sparse file begin: its map may go on in further blocks."""
    more = header[482]
    while more:
        block = read(at, at + BLOCK)
        if len(block) < BLOCK:
            raise Damaged
        at, more = at + BLOCK, block[504]
    return at


class Pieces:
    """One stored object by byte ranges, fetched in pieces that double while nothing is skipped. A context manager.

    Args:
        size: of the object in bytes.
        ahead: bytes to read at first and after a jump.

    Attributes:
        fetched: bytes fetched so far.
        requests: how often something was.
    """

    def __init__(self, storage: Storage, key: str, size: int, ahead: int = AHEAD_BYTES) -> None:
        self.size, self.fetched, self.requests = size, 0, 0
        self._storage, self._key = storage, key
        path = storage.local(key)
        self._most = AHEAD_BYTES if path is None else DISK_BYTES
        self._least = self._ahead = min(ahead, self._most)
        self._start, self._held = 0, b""
        self._file: IO[bytes] | None = None if path is None else path.open("rb")

    def __enter__(self) -> Pieces:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, start: int, end: int) -> bytes:
        """Bytes [start, end), as far as there are any. Cheap in ascending order."""
        end = min(end, self.size)
        if start < self._start or end > self._start + len(self._held):
            self._fetch(start, end)
        return self._held[start - self._start : end - self._start]

    def _fetch(self, start: int, end: int) -> None:
        goes_on = 0 <= start - self._start < len(self._held) + JUMP_BYTES
        self._ahead = min(2 * self._ahead, self._most) if goes_on else self._least
        kept = self._held[start - self._start :] if goes_on else b""
        first = start + len(kept)
        last = min(max(end, first + self._ahead), self.size)
        self._start, self._held = start, kept + self._get(first, last)

    def _get(self, first: int, last: int) -> bytes:
        if first >= last:
            return b""
        self.fetched += last - first
        self.requests += 1
        if self._file is not None:
            return os.pread(self._file.fileno(), last - first, first)
        return self._storage.get_ranges(self._key, [first], [last])[0]
