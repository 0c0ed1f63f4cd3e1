"""Random numbers as a pure function of their name: (seed, purpose, epoch, uid, view) always gives the same draws.

There is no state to save, so any sample can be prepared by any thread, process or machine, in any order, with the same
result.
"""

from __future__ import annotations

import hashlib
import struct

NUM_DRAWS = 8


def uniforms(seed: int, purpose: str, *parts: int | str) -> list[float]:
    """Eight numbers in [0, 1), 53 bits each, from BLAKE2b over the name."""
    digest = hashlib.blake2b(_spelt(seed, purpose, *parts), digest_size=8 * NUM_DRAWS).digest()
    return [(word >> 11) * 2.0**-53 for word in struct.unpack(f"<{NUM_DRAWS}Q", digest)]


def integer(seed: int, purpose: str, *parts: int | str) -> int:
    """A 128-bit integer from the same construction: a key for ordering by hash, or for a permutation."""
    return int.from_bytes(hashlib.blake2b(_spelt(seed, purpose, *parts), digest_size=16).digest(), "little")


def _spelt(*parts: int | str) -> bytes:
    """Each part after its length, so that no two names spell the same."""
    return "".join([f"{len(part)}:{part}," for part in map(str, parts)]).encode()
