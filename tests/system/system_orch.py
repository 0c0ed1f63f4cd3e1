"""The `orch` command as a person runs it: in a process of its own, under a hard time limit, with its own ORCH_HOME."""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from orchestrator.engine import cluster
from orchestrator.store.artifacts import Store

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "recipes" / "tinyclip_progressive.yaml"
QUARTER = {"teacher": 120, "mid": 30, "small": 35, "scratch": 35}
FOREIGN = ("RAY_", "ORCH_", "MLFLOW_")
NUM_SHARDS, NUM_SAMPLES = 2, 48
"""Shards that `write_shards` writes, and pairs in each."""


@dataclass
class Orch:
    """The command, with an environment of its own; what it starts and leaves is ended with `close`."""

    home: Path
    environment: dict[str, str]
    cwd: Path = ROOT
    started: list[subprocess.Popen] = field(default_factory=list)

    def start(self, *arguments: str | Path, **popen: Any) -> subprocess.Popen:
        """Begin a command."""
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *map(str, arguments)],
            **{
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "text": True,
                "env": self.environment,
                "cwd": self.cwd,
                **popen,
            },
        )
        self.started.append(process)
        return process

    def __call__(self, *arguments: str | Path, exit_code: int = 0, timeout_s: float = 60, **popen: Any) -> Ended:
        """Run a command to its end, which must be `exit_code`."""
        begun = time.monotonic()
        ended = self.end(self.start(*arguments, **popen), exit_code, timeout_s)
        return Ended(ended.out, ended.err, time.monotonic() - begun)

    def end(self, process: subprocess.Popen, exit_code: int = 0, timeout_s: float = 60) -> Ended:
        """Wait for a command's end, which must be `exit_code`."""
        begun = time.monotonic()
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            pytest.fail(f"{process.args} took more than {timeout_s:g} s\n{out}\n{err}")
        assert process.returncode == exit_code, f"{process.args}: {process.returncode}\n{out}\n{err}"
        return Ended(out, err, time.monotonic() - begun)

    def delivered(self, timeout_s: float = 120) -> None:
        """Wait until MLflow has been told everything."""
        spool = self.home / "spool"
        wait(lambda: not spool.exists() or not any(spool.iterdir()), timeout_s, "MLflow's spool to be empty")

    def cluster(self) -> cluster.LocalCluster:
        """The local cluster, which must be up."""
        found = cluster.recorded(self.home)
        assert found is not None
        return found

    def dashboard(self, path: str) -> Any:
        """The dashboard's answer over HTTP, with the token; None while it has none."""
        found = self.cluster()
        headers = {"Authorization": f"Bearer {cluster.token_value(found)}"}
        request = urllib.request.Request(found.dashboard_url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError:
            return None

    def workers(self, stage: str) -> list[psutil.Process]:
        """The cluster's processes that work on a stage now: Ray calls them by the task they do."""
        found = []
        for process in psutil.Process(self.cluster().pid).children(recursive=True):
            try:
                if process.cmdline()[:1] == [f"ray::{stage}"]:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def close(self) -> None:
        """End what is left of the commands, then the cluster and MLflow's page."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.communicate()
        self("cluster", "down", timeout_s=60)


@dataclass(frozen=True)
class Ended:
    """How a command ended: what it said and how long it took."""

    out: str
    err: str
    wall_s: float


def wait(ready: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """The first true answer of `ready`; fails after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (answer := ready()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.05)
    return answer


@dataclass(frozen=True)
class Demo:
    """A finished demo: its store, the stages' steps, and what the submission said."""

    store: str
    overrides: tuple[str, ...]
    said: Ended

    @property
    def recipe(self) -> tuple[str | Path, ...]:
        """The arguments that name recipe, overrides and store."""
        return (DEMO, *self.overrides, "--store", self.store)

    def opened(self) -> Store:
        """The store, opened anew."""
        return Store.open(self.store)

    def copy(self, folder: Path) -> str:
        """A copy of the store's artifacts in a folder, to change."""
        target = folder / "store"
        shutil.copytree(self.store, target, ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts", "runs", "work"))
        return str(target)


@dataclass(frozen=True)
class S3Demo(Demo):
    """The same on S3, submitted by `orch`, whose environment has the server's address and planted secrets."""

    orch: Orch
    planted: Mapping[str, str]
    """Variables of the environment whose values must be nowhere but there."""


def overrides(**values: object) -> tuple[str, ...]:
    """`-s` options: `small__learning_rate=1` becomes `-s stages.small.learning_rate=1`."""
    pairs = [("-s", f"stages.{name.replace('__', '.')}={value}") for name, value in values.items()]
    return tuple(word for pair in pairs for word in pair)


def write_shards(folder: Path) -> None:
    """Photographs' worth of noise with captions: KEY.jpg, KEY.txt, KEY.json in tars, and img2dataset's side files."""
    drawn = random.Random(0)
    for shard in range(NUM_SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(NUM_SAMPLES):
                key, caption = f"{shard:05d}{number:04d}", f"picture {number} of shard {shard}"
                picture = Image.frombytes("RGB", (40, 30), drawn.randbytes(3600)).resize((80, 60))
                image = io.BytesIO()
                picture.save(image, "JPEG")
                facts = {"caption": caption, "url": f"https://example.org/{key}.jpg", "key": key, "status": "success"}
                for suffix, content in (
                    ("jpg", image.getvalue()),
                    ("txt", caption.encode()),
                    ("json", json.dumps(facts).encode()),
                ):
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps({"count": NUM_SAMPLES, "successes": NUM_SAMPLES}))
