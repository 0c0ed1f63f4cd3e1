"""The number at a rank among many, exactly, in memory that does not grow with how many there are.

The numbers lie in a file; 16 bits of the one that is sought are found at a time, by counting how many begin so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable

import numpy as np

DIGIT = 16
"""Bits that are found at a time."""
PIECE = 1 << 22
"""Bytes of the file that are looked at together."""


def at_rank(pieces: Iterable[np.ndarray], rank: Callable[[int], int]) -> tuple[int | None, int]:
    """Of n uint64 numbers, in pieces of any size, the one at place `rank(n)` of the ascending order; and n.

    None if there is none; places beyond either end mean the first or last.
    """
    with tempfile.TemporaryFile() as file:
        for values in pieces:
            file.write(np.ascontiguousarray(values, np.uint64).tobytes())
        count = file.tell() // 8
        if not count:
            return None, 0
        place, known = min(max(rank(count), 0), count - 1), 0
        for bits in range(0, 64, DIGIT):
            counts = np.zeros(1 << DIGIT, np.int64)
            file.seek(0)
            while data := file.read(PIECE):
                numbers = np.frombuffer(data, np.uint64)
                if bits:
                    numbers = numbers[numbers >> np.uint64(64 - bits) == np.uint64(known)]
                digits = (numbers >> np.uint64(64 - DIGIT - bits)) & np.uint64((1 << DIGIT) - 1)
                counts += np.bincount(digits.astype(np.int64), minlength=1 << DIGIT)
            reached = np.cumsum(counts)
            digit = int(np.searchsorted(reached, place, side="right"))
            place -= int(reached[digit] - counts[digit])
            known = (known << DIGIT) + digit
    return known, count
