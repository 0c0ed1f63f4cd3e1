"""One local Ray cluster and one finished small demo, on a disk and on S3, for all system tests.

ORCH_HOME (token, cluster record, spool, MLflow's page) is a temporary one. Tests that change a store work on a copy of
the finished demo's. The one on S3 was submitted with secrets in the environment, to be searched for afterwards.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest
from system_orch import DEMO, FOREIGN, QUARTER, ROOT, Demo, Orch, S3Demo, overrides

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


@pytest.fixture(scope="session")
def s3_demo(orch, s3_server, tmp_path_factory) -> S3Demo:
    """The same on S3, submitted once to the same cluster, with an empty cache."""
    planted = {
        "AWS_SECRET_ACCESS_KEY": s3_server.secret_key,
        "HF_TOKEN": f"hf_{secrets.token_hex(17)}",
        "MLFLOW_TRACKING_PASSWORD": f"planted-{secrets.token_hex(12)}",
        "WANDB_API_KEY": secrets.token_hex(20),
    }
    environment = {name: value for name, value in orch.environment.items() if not name.startswith("AWS_")}
    environment |= {**s3_server.environment, **planted, "ORCH_CACHE": str(tmp_path_factory.mktemp("s3-cache"))}
    command = Orch(orch.home, environment)
    store = f"s3://{s3_server.bucket}/demo-{secrets.token_hex(4)}"
    changed = overrides(**{f"{stage}__steps": steps for stage, steps in QUARTER.items()})
    said = command("submit", DEMO, *changed, "--store", store, timeout_s=600)
    return S3Demo(store, changed, said, command, planted)


@pytest.fixture
def copy(demo, tmp_path) -> str:
    """A copy of the finished demo's store."""
    return demo.copy(tmp_path)
