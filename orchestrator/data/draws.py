"""Random numbers as a pure function of their name: (seed, purpose, epoch, uid, view) always gives the same draws.

There is no state to save, so any sample can be prepared by any thread, process or machine, in any order, with the same
result.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

NUM_DRAWS = 8


def uniforms(seed: int, purpose: str, *parts: int | str) -> list[float]:
    """Eight numbers in [0, 1), 53 bits each, from BLAKE2b over the name."""
    digest = hashlib.blake2b(_spelt(seed, purpose, *parts), digest_size=8 * NUM_DRAWS).digest()
    return [(word >> 11) * 2.0**-53 for word in struct.unpack(f"<{NUM_DRAWS}Q", digest)]


def integer(seed: int, purpose: str, *parts: int | str) -> int:
    """A 128-bit integer from the same construction: a key for ordering by hash, or for a permutation."""
    return int.from_bytes(hashlib.blake2b(_spelt(seed, purpose, *parts), digest_size=16).digest(), "little")


def hashes(seed: int, purpose: str, uids: np.ndarray, numbers: np.ndarray | None = None) -> np.ndarray:
    """64 bits for each of many samples [n] (data/dataset.py `IDENTITY`), and a number [n] of each: uint64 [n].

    They order samples by chance, whatever order they come in. The ids, which are digests themselves, are mixed with a
    key by SplitMix64's finaliser: a hundred times as fast as `integer` for each.
    """
    import numpy as np

    key = integer(seed, purpose)
    mixed = _mix(uids["high"].astype(np.uint64) ^ np.uint64(key >> 64))
    mixed = _mix(mixed ^ uids["low"].astype(np.uint64) ^ np.uint64(key % 2**64))
    return mixed if numbers is None else _mix(mixed ^ _mix(numbers.astype(np.uint64) + np.uint64(1)))


def _mix(words: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014): a permutation of 64-bit words that spreads every bit."""
    import numpy as np

    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _spelt(*parts: int | str) -> bytes:
    """Each part after its length, so that no two names spell the same."""
    return "".join([f"{len(part)}:{part}," for part in map(str, parts)]).encode()
