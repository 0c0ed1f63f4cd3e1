"""Compute threads that share their cores with others: a stage beside another, a loader's threads, the engine.

torch's OpenMP (libgomp) lets a thread that has nothing to do spin for milliseconds. Where cores are shared, the thread
it waits for cannot run meanwhile: two trainings of two threads each on two cores fell from 1,800 samples a second to
33, and to 900 each with a short spin, which costs nothing on idle cores (benchmarks.md).
"""

from __future__ import annotations

from collections.abc import MutableMapping

SPINS = "1000"
"""Turns of an idle thread before it sleeps: microseconds."""


def share_cores(environment: MutableMapping[str, str]) -> None:
    """Ask for short spins, unless the person has chosen. Takes effect in processes that have not loaded torch yet."""
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", SPINS)
