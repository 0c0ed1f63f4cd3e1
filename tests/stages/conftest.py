"""A real Ray for the stages that need several processes: one cluster a test file."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

HERE = str(Path(__file__).parent)


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory):
    """The local cluster with a home and a token of its own; this process is its driver."""
    from orchestrator.engine import cluster

    patch = pytest.MonkeyPatch()
    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text("0" * 64)
    patch.setenv("ORCH_HOME", str(token.parent))
    patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    patch.setenv("PYTHONPATH", HERE)
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        patch.delenv(name, raising=False)
    sigterm = signal.getsignal(signal.SIGTERM)
    connection = cluster.connect(num_cpus=2)
    assert signal.getsignal(signal.SIGTERM) is sigterm  # ray.init leaves one of its own in a library's process
    import ray

    yield ray
    cluster.disconnect(connection)
    cluster.down()
    patch.undo()
