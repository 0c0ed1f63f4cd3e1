"""The toy kinds of the recipe tests, also for the plan's."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "recipe"))
