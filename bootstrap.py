#!/usr/bin/env python3
"""Two commands on a fresh machine: `python3 bootstrap.py demo` and `python3 bootstrap.py test`.

Needs Python 3.11 or newer and nothing else: it checks what the installation will need (venv, disk, shared memory,
ports), makes a virtual environment in .venv, installs this checkout into it with the versions of constraints.txt,
and runs the demo recipe or the tests. Where there is no GPU it takes the CPU build of torch. Installing again is
skipped while nothing it depends on has changed.
"""

import argparse
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
STAMP = VENV / "installed"
TORCH = "2.13.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NEEDED_GB = 4


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def check() -> list[str]:
    """What is missing, each with its remedy."""
    problems = []
    if sys.version_info < (3, 11):  # noqa: UP036 (this file runs on whatever Python there is)
        problems.append(
            f"Python {sys.version.split()[0]} is too old: run this with 3.11 or newer, e.g. python3.11 bootstrap.py"
        )
        return problems
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        problems.append("this Python cannot make virtual environments: on Debian or Ubuntu, apt install python3-venv")
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    if not STAMP.exists() and free_gb < NEEDED_GB:
        problems.append(f"{free_gb:.1f} GB free at {ROOT}, {NEEDED_GB} GB needed: free some space or clone elsewhere")
    shm = Path("/dev/shm")
    if sys.platform == "linux":
        if not (shm.is_dir() and os.access(shm, os.W_OK)):
            problems.append(
                "/dev/shm is missing or not writable (Ray's object store lives there): mount a tmpfs on it"
            )
        elif shutil.disk_usage(shm).free < 256e6:
            problems.append("/dev/shm has less than 256 MB free: in Docker, start the container with --shm-size=2g")
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
    except OSError as error:
        problems.append(f"no port can be opened on 127.0.0.1 ({error}): Ray and the dashboards need loopback ports")
    return problems


def has_gpu() -> bool:
    """Whether an NVIDIA driver answers on this machine."""
    if Path("/proc/driver/nvidia/gpus").is_dir():
        return True
    tool = shutil.which("nvidia-smi")
    return bool(tool) and subprocess.run([tool, "-L"], capture_output=True).returncode == 0


def pip(*args: str, quiet: bool = False) -> bool:
    command = [
        str(BIN / "python"),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--progress-bar",
        "off",
        "-q",
    ]
    result = subprocess.run(
        [*command, "-c", str(ROOT / "constraints.txt"), *args], cwd=ROOT, stderr=subprocess.DEVNULL if quiet else None
    )
    return result.returncode == 0


def install_torch() -> None:
    if has_gpu():
        say(f"installing torch {TORCH} (this machine has a GPU)")
        attempts = [(f"torch=={TORCH}",)]
    else:
        say(f"installing torch {TORCH}, CPU build (no GPU here)")
        attempts = [
            (f"torch=={TORCH}+cpu",),
            (f"torch=={TORCH}+cpu", "--index-url", TORCH_CPU_INDEX),
            (f"torch=={TORCH}",),
        ]
    for number, attempt in enumerate(attempts):
        if pip(*attempt, quiet=number < len(attempts) - 1):
            return
    raise SystemExit("torch could not be installed; pip's message is above. Check the network and the package index.")


def install() -> None:
    """Make .venv and install this checkout with its test tools, unless that has been done for these very files."""
    digest = hashlib.sha256(sys.version.encode())
    for name in ("pyproject.toml", "constraints.txt", "bootstrap.py"):
        digest.update((ROOT / name).read_bytes())
    if STAMP.exists() and STAMP.read_text() == digest.hexdigest():
        return
    started = time.monotonic()
    say(f"making a virtual environment in {VENV} and installing into it (a few minutes, once)")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
    install_torch()
    say("installing Ray, MLflow, open_clip and the rest")
    if not pip("-e", ".[test]"):
        raise SystemExit("the installation failed; pip's message is above. Check the network and the package index.")
    STAMP.write_text(digest.hexdigest())
    say(f"installed in {time.monotonic() - started:.0f} s")


def run(*command: str) -> int:
    """Run a tool of the virtual environment, with its folder first on PATH."""
    env = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}", "VIRTUAL_ENV": str(VENV)}
    return subprocess.run([str(BIN / command[0]), *command[1:]], cwd=ROOT, env=env).returncode


def demo(arguments: list[str]) -> int:
    return run("orch", "submit", "recipes/tinyclip_progressive.yaml", *arguments)


def test(arguments: list[str]) -> int:
    os.environ.setdefault("ORCH_REQUIRE_S3", "1" if (BIN / "weed").exists() else "")
    checks = [
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("lint-imports",),
        ("mypy",),
        ("python", "-m", "pytest", *arguments),
    ]
    for command in checks:
        say(" ".join(command))
        code = run(*command)
        if code:
            return code
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("install", "demo", "test"))
    options, rest = parser.parse_known_args()
    problems = check()
    if problems:
        print("This machine is not ready:\n" + "\n".join(f"  - {problem}" for problem in problems), file=sys.stderr)
        return 2
    install()
    if options.what == "demo":
        return demo(rest)
    if options.what == "test":
        return test(rest)
    say(f"ready: {BIN / 'orch'} --help")
    return 0


if __name__ == "__main__":
    sys.exit(main())
