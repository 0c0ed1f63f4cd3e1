"""What a run needs of a machine, checked one by one; each finding that is not well says what to do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.io.home import home
from orchestrator.io.redact import redact

PACKAGES = ("torch", "ray", "mlflow", "open_clip_torch", "obstore", "pyarrow", "pydantic", "webdataset", "optuna")


@dataclass(frozen=True)
class Check:
    """One finding: `level` is ok, warning (work is possible) or error (it is not)."""

    name: str
    level: str
    finding: str
    remedy: str = ""


def examine() -> Iterator[Check]:
    """All checks, each computed when it is asked for; one that breaks is a finding too."""
    for check in (
        _python,
        _packages,
        _torchvision,
        _memory,
        _shared_memory,
        _disk,
        _ports,
        _private,
        _gpu,
        _store,
        _mlflow,
    ):
        yield _safely(check)


def _safely(check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:  # a diagnosis must not die of what it diagnoses
        return Check(check.__name__.strip("_"), "error", f"{type(error).__name__}: {error}")


def gpu_count() -> int:
    """NVIDIA GPUs of this machine, as the driver lists them."""
    folder = Path("/proc/driver/nvidia/gpus")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def _python() -> Check:
    return Check("python", "ok", f"{sys.version.split()[0]} at {sys.executable}")


def _packages() -> Check:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name.removesuffix("_torch")) is None]
    if missing:
        return Check("packages", "error", f"missing: {', '.join(missing)}", "pip install -c constraints.txt -e .")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return Check("packages", "ok", versions)


def _torchvision() -> Check:
    torch, vision = importlib.metadata.version("torch"), importlib.metadata.version("torchvision")
    if "+cpu" in torch and "+cpu" not in vision:
        finding = f"torchvision {vision} was built for CUDA, torch {torch} for CPU"
        return Check("torchvision", "ok", f"{finding}: its two missing operators are declared before open_clip loads")
    return Check("torchvision", "ok", f"{vision} beside torch {torch}")


def _memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    finding = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free, {os.cpu_count()} CPU cores"
    if memory.available < 2e9:
        return Check("memory", "warning", finding, "the demo needs about 2 GB: close something")
    return Check("memory", "ok", finding)


def _shared_memory() -> Check:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Check("shared memory", "ok", "no /dev/shm on this system; Ray uses files")
    free = shutil.disk_usage(folder).free
    if free < 256e6:
        remedy = "in Docker, start the container with --shm-size=2g; elsewhere: mount -o remount,size=2G /dev/shm"
        return Check("shared memory", "error", f"{free / 1e6:.0f} MB free in /dev/shm", remedy)
    return Check("shared memory", "ok", f"{free / 1e9:.1f} GB free in /dev/shm")


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    if free < 1e9:
        remedy = "free some space, or point ORCH_STORE elsewhere"
        return Check("disk", "warning", f"{free / 1e9:.1f} GB free here", remedy)
    return Check("disk", "ok", f"{free / 1e9:.0f} GB free here")


def _ports() -> Check:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
    return Check("ports", "ok", "loopback ports can be opened")


def _private() -> Check:
    """Who could read what lets one in: the token, the spool, credentials."""
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").expanduser()
    places = [home(), home() / "auth_token", token, Path("~/.aws/credentials").expanduser()]
    open_to_others = [str(place) for place in places if place.exists() and place.stat().st_mode & 0o077]
    if open_to_others:
        return Check(
            "private", "warning", f"others can read {', '.join(open_to_others)}", f"chmod go= {open_to_others[0]}"
        )
    return Check("private", "ok", "nobody else can read tokens and credentials")


def _gpu() -> Check:
    if not gpu_count():
        return Check("gpu", "ok", "none; training uses the CPU in fp32")
    import torch

    if torch.cuda.is_available():
        return Check("gpu", "ok", ", ".join(torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())))
    return Check("gpu", "warning", "a GPU is here, but this torch cannot use it", "pip install torch built for CUDA")


def _store() -> Check:
    from orchestrator.store.artifacts import Store

    url = os.environ.get("ORCH_STORE", "orch-store")
    count = sum(1 for _ in Store.open(url).manifests())
    return Check("store", "ok", f"{url}: {count} finished artifacts")


def _mlflow() -> Check:
    from orchestrator.tracking.spool import pending, tracking_uri

    uri = redact(tracking_uri(os.environ.get("ORCH_STORE", "orch-store")))
    waiting = len(pending())
    if waiting:
        remedy = "they are delivered by the next submit or `orch ui`, once the server answers"
        return Check("mlflow", "warning", f"{uri}; {waiting} runs not delivered yet", remedy)
    return Check("mlflow", "ok", uri)
