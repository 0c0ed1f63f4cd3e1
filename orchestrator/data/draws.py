"""Random numbers as a pure function of their name: (seed, purpose, epoch, uid, view) always gives the same draws.

There is no state to save, so any sample can be prepared by any thread, process or machine, in any order, with the same
result.
"""

from __future__ import annotations

import hashlib
import json

NUM_DRAWS = 8


def uniforms(seed: int, purpose: str, *parts: int | str) -> list[float]:
    """Eight numbers in [0, 1), 53 bits each, from BLAKE2b over the name as JSON: no two names spell the same."""
    name = json.dumps((seed, purpose, *parts)).encode()
    digest = hashlib.blake2b(name, digest_size=8 * NUM_DRAWS).digest()
    return [(int.from_bytes(digest[i : i + 8], "little") >> 11) * 2.0**-53 for i in range(0, 8 * NUM_DRAWS, 8)]


def integer(seed: int, purpose: str, *parts: int | str) -> int:
    """A 128-bit integer from the same construction: a key for ordering by hash, or for a permutation."""
    name = json.dumps((seed, purpose, *parts)).encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little")
