"""One local Ray cluster and one finished small demo for all system tests.

ORCH_HOME (token, cluster record, spool, MLflow's page) is a temporary one. Tests that change a store work on a copy of
the finished demo's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from system_orch import DEMO, FOREIGN, QUARTER, ROOT, Demo, Orch, overrides

from orchestrator.engine import cluster


@pytest.fixture(scope="session")
def orch(tmp_path_factory) -> Iterator[Orch]:
    """The command; its cluster starts with the first submission and is stopped at the end."""
    home = tmp_path_factory.mktemp("orch-home")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    environment |= {"ORCH_HOME": str(home), "PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    command = Orch(home, environment)
    yield command
    command.close()
    assert cluster.recorded(home) is None


@pytest.fixture(scope="session")
def demo(orch, tmp_path_factory) -> Demo:
    """The demo at about a quarter of its steps, submitted once."""
    store = str(tmp_path_factory.mktemp("demo") / "store")
    changed = overrides(**{f"{stage}__steps": steps for stage, steps in QUARTER.items()})
    said = orch("submit", DEMO, *changed, "--store", store, timeout_s=600)
    return Demo(store, changed, said)


@pytest.fixture
def copy(demo, tmp_path) -> str:
    """A copy of the finished demo's store."""
    return demo.copy(tmp_path)
