"""Makes the engine's toy stages importable here and in the processes that the tests start."""

from __future__ import annotations

import os
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
PLACES = [str(TESTS / "faults"), str(TESTS / "engine"), str(TESTS.parent)]
sys.path[:0] = PLACES[:2]
os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (*PLACES, os.environ.get("PYTHONPATH")) if p)
