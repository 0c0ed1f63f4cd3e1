"""Child processes start from any script: it is not run again in them."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
from concurrent.futures import ProcessPoolExecutor
from orchestrator.data.children import ForkServer, Spawn, end_with_parent

print("the script runs", flush=True)
with ProcessPoolExecutor(2, mp_context={context}(), initializer=end_with_parent) as pool:
    print(list(pool.map(abs, [-3, -2, -1])))
import __main__
print(__main__.__file__)
"""


@pytest.mark.parametrize("context", ["Spawn", "ForkServer"])
def test_a_script_that_starts_children_on_its_top_level_is_run_once(tmp_path, context):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("{context}", context))
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.splitlines() == ["the script runs", "[3, 2, 1]", str(script)]
