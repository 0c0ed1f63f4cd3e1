"""Kill -9 of a real submitting process between any two of its steps: submitting again goes on, and gives the same
artifacts. The whole table, with simulated processes, is tests/faults/test_faults_kill.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import toy_kinds
from toy_kinds import SHAPES, count

from orchestrator.engine.local import LocalExecutor
from orchestrator.engine.observe import Observer, Observers
from orchestrator.engine.scheduler import Policy, Scheduler
from orchestrator.store.artifacts import Store
from orchestrator.store.runs import create_run

pytestmark = pytest.mark.timeout(120)

NUM_STEPS = 17
"""Calls of the observer in an undisturbed run of the diamond and one more: four a stage."""


class KillsAt(Observer):
    """Ends this process at its n-th call."""

    def __init__(self, step: int) -> None:
        self.left = step

    def _count(self) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1

    def stage_state(self, node, status):
        self._count()

    def stage_started(self, node):
        self._count()

    def stage_finished(self, node, manifest, cached, children):
        self._count()


def submit(trace: Path, url: str, observer: Observer):
    plan = toy_kinds.plan(SHAPES["diamond"], trace, a={"steps": 2})
    store = Store.open(url)
    observers = Observers([observer], lambda text: None)
    policy = Policy(poll_s=0.02, elsewhere_s=0.05)
    return Scheduler(plan, store, LocalExecutor(), create_run(store, "toys", "", {}), observers, policy).run()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("undisturbed")
    (root / "trace").mkdir()
    result = submit(root / "trace", str(root / "store"), Observer())
    return {name: manifest.content_digest for name, manifest in result.manifests.items()}


@pytest.mark.parametrize(
    ("place", "step"), [("local", step) for step in range(0, NUM_STEPS, 2)] + [("s3", step) for step in (1, 7, 12)]
)
def test_submitting_again_after_a_kill_gives_the_undisturbed_artifacts(place, step, tmp_path, undisturbed, request):
    url = str(tmp_path / "store") if place == "local" else request.getfixturevalue("s3_root")
    (tmp_path / "trace").mkdir()
    killed = subprocess.run([sys.executable, __file__, str(tmp_path / "trace"), url, str(step)], timeout=60)
    assert killed.returncode == (-signal.SIGKILL if step < NUM_STEPS - 1 else 0)
    begun = {name: count(tmp_path / "trace", name) for name in SHAPES["diamond"]}
    finished = {name: count(tmp_path / "trace", name, "finished") for name in SHAPES["diamond"]}
    result = submit(tmp_path / "trace", url, Observer())
    assert result.ok
    assert {name: m.content_digest for name, m in result.manifests.items()} == undisturbed
    for name in SHAPES["diamond"]:
        again = count(tmp_path / "trace", name) - begun[name]
        assert again <= 1
        if result.stages[name].state == "cached":
            assert again == 0
            assert finished[name] == 1


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    submit(Path(sys.argv[1]), sys.argv[2], KillsAt(int(sys.argv[3])))
