"""Files of Qt programs: binary resources (`.rcc`) and compiled translations (`.qm`).

Both formats are fixed by Qt's own readers: qtbase `qresource.cpp` and `qtranslator.cpp`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

COMPRESSED, FOLDER = 1, 2
"""Flags of a resource; Zstandard (4) is not read."""
QM_MAGIC = bytes.fromhex("3cb86418caef9c95cd211cbf60a1bddd")
MESSAGES = 0x69
"""Section of a `.qm` file: all messages, with their sources."""
END, TRANSLATION, OBSOLETE, SOURCE = 1, 3, 5, 6
"""Tags of a message's parts that are looked at; all but END and OBSOLETE have a length."""


def resources(data: bytes) -> dict[str, bytes]:
    """Path -> content, of a resource file; ValueError if it is none."""
    magic, version, tree, contents, names = struct.unpack_from(">4s4I", data)
    if magic != b"qres":
        raise ValueError("not a Qt resource file")
    found, size = {}, 14 if version == 1 else 22
    waiting = [(0, "")]
    while waiting:
        place, folder = waiting.pop()
        name, flags, one, two = struct.unpack_from(">IHII", data, tree + place * size)
        path = f"{folder}/{_name(data, names + name)}" if place else ""
        if flags & FOLDER:
            waiting += [(two + k, path) for k in range(one)]
            continue
        start = contents + two
        length = struct.unpack_from(">I", data, start)[0]
        content = data[start + 4 : start + 4 + length]
        found[path] = zlib.decompress(content[4:]) if flags & COMPRESSED else content
    return found


def _name(data: bytes, start: int) -> str:
    length = struct.unpack_from(">H", data, start)[0]
    return data[start + 6 : start + 6 + 2 * length].decode("utf-16-be")  # a hash lies between


def translations(data: bytes) -> dict[str, str]:
    """Source text -> translation, of a `.qm` file; of plural forms the first. ValueError if it is none."""
    if not data.startswith(QM_MAGIC):
        raise ValueError("not a compiled Qt translation")
    found: dict[str, str] = {}
    for message in _messages(_section(data, MESSAGES)):
        if SOURCE in message and TRANSLATION in message:
            found.setdefault(message[SOURCE].decode(), message[TRANSLATION].decode("utf-16-be"))
    return found


def _section(data: bytes, wanted: int) -> bytes:
    place = len(QM_MAGIC)
    while place < len(data):
        tag, length = struct.unpack_from(">BI", data, place)
        if tag == wanted:
            return data[place + 5 : place + 5 + length]
        place += 5 + length
    return b""


def _messages(data: bytes) -> Iterator[dict[int, bytes]]:
    """Tag -> the first of a message's parts with it."""
    place, parts = 0, dict[int, bytes]()
    while place < len(data):
        tag, place = data[place], place + 1
        if tag == END:
            yield parts
            parts = {}
        elif tag == OBSOLETE:
            place += 4
        else:
            length = struct.unpack_from(">I", data, place)[0]
            length = 0 if length == 0xFFFFFFFF else length  # nothing, as Qt spells it
            parts.setdefault(tag, data[place + 4 : place + 4 + length])
            place += 4 + length
