"""Nodes that share no file system with the submitter nor with each other: all that passes between them is Ray and S3.

Each node is a raylet in a mount namespace of its own, in which the folders of the data, of the submitter and of the
package, and the temporary files, are empty.
"""

from __future__ import annotations

import os
import random
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from system_orch import FOREIGN, ROOT, Orch, write_shards

from orchestrator.store.artifacts import Store
from orchestrator.store.events import EventReader

pytestmark = [pytest.mark.ray, pytest.mark.timeout(280, func_only=True)]

RECIPE = """\
name: apart
stages:
  pairs: {kind: dataset, source: SOURCE, split: {ood_style: null, holdout: 0.2}}
  clean: {kind: curate, data: pairs, steps: [dedup]}
  alone: {kind: pretrain, data: clean, model: tiny, batch: 16, steps: 200, resources: {cpus: 1}}
  both:
    kind: finetune
    data: clean
    model: tiny
    init: {from: alone}
    batch: 16
    steps: 6
    resources: {cpus: 2, workers: 2}
"""


@dataclass(frozen=True)
class Apart:
    """The command, connected to such a cluster; the submitter's folder, and the data's."""

    orch: Orch
    folder: Path
    data: Path


@pytest.fixture(scope="module")
def apart(s3_server, tmp_path_factory) -> Iterator[Apart]:
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode:
        pytest.skip("mount namespaces are not permitted here (needs Linux and root)")
    folder, data = tmp_path_factory.mktemp("submitter"), tmp_path_factory.mktemp("data")
    write_shards(data)
    place = Path(tempfile.mkdtemp(prefix="apart-", dir="/tmp"))  # Unix sockets' paths are short
    (place / "token").write_text(secrets.token_hex(32))
    (place / "tmp").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith((*FOREIGN, "AWS_"))}
    environment |= s3_server.environment | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(place / "token"),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
    }
    address = f"127.0.0.2:{20_000 + random.SystemRandom().randrange(10_000)}"
    started: list[subprocess.Popen] = []
    try:
        nodes = {**environment, "TMPDIR": str(place / "tmp"), "ORCH_CACHE": str(place / "tmp" / "cache")}
        _start_nodes(address, place, [folder, data, ROOT / "orchestrator", place / "tmp"], nodes, started)
        submitter = environment | {
            "RAY_ADDRESS": address,
            "ORCH_HOME": str(folder / "home"),
            "ORCH_CACHE": str(folder / "cache"),
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "160",
        }
        yield Apart(Orch(folder / "home", submitter, cwd=folder), folder, data)
    finally:
        family = [each for process in started for each in _family(process.pid)]
        for process in family:
            process.kill()  # `ray start` takes its time to end
        for process in started:
            process.wait()
        psutil.wait_procs(family, 10)
        shutil.rmtree(place, ignore_errors=True)


def _start_nodes(
    address: str, place: Path, hidden: list[Path], environment: dict[str, str], started: list[subprocess.Popen]
) -> None:
    """A head without CPUs, then two nodes with one each, to which these folders are empty; one after another."""
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--disable-usage-stats", "--block"]
    host, _, port = address.partition(":")
    head = [f"--node-ip-address={host}", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
    commands = [[*ray, "--head", *head, f"--temp-dir={place}/ray"]]
    hide = " && ".join(f"mount -t tmpfs none {shlex.quote(str(folder))}" for folder in hidden)
    for node in ("127.0.0.3", "127.0.0.4"):
        joins = shlex.join([*ray, f"--address={address}", f"--node-ip-address={node}", "--num-cpus=1"])
        commands.append(["unshare", "-m", "sh", "-c", f"{hide} && exec {joins}"])
    for number, command in enumerate(commands):
        path = place / f"log-{number}"
        with path.open("wb") as log:
            variables = {**environment, "PYTHONUNBUFFERED": "1"}
            started.append(subprocess.Popen(command, env=variables, stdout=log, stderr=log, cwd="/"))
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in (said := path.read_text()):
            if time.monotonic() > deadline or started[-1].poll() is not None:
                pytest.fail(f"node {number} did not start:\n{said[-2000:]}")
            time.sleep(0.1)


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def test_a_recipe_runs_stops_and_goes_on_where_no_disk_is_shared(apart, s3_root):
    recipe = apart.folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("SOURCE", str(apart.data)))
    first = apart.orch.start("submit", recipe, "--store", s3_root, stderr=subprocess.STDOUT)
    for line in first.stdout:
        print(line, end="")
        if "alone:" in line and "samples/s" in line:
            break
    first.send_signal(signal.SIGINT)
    apart.orch.end(first, 130, 100)
    storage = Store.open(s3_root).storage
    assert any("/ckpt-" in info.key for info in storage.list("work"))
    print(apart.orch("submit", recipe, "--store", s3_root, timeout_s=200).err)
    made = {manifest.stage: manifest for manifest in Store.open(s3_root).manifests()}
    assert list(made) == ["pairs", "clean", "alone", "both"]
    assert "resumed" in {event["type"] for event in EventReader(storage, made["alone"].fingerprint).poll()}


def test_a_reference_that_the_nodes_cannot_read_is_refused_before_anything_is_trained(apart, s3_root):
    recipe = apart.folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("SOURCE", str(apart.data)))
    reference = ["-s", "stages.pairs.import=reference"]
    ended = apart.orch("submit", recipe, *reference, "--store", s3_root, "--no-mlflow", exit_code=1, timeout_s=100)
    said = ended.out + ended.err
    assert "cannot be read by the worker on node" in said
    assert f"{apart.data}: its shards are not there" in said
    assert "import: copy" in said
    assert "clean: skipped" in said
