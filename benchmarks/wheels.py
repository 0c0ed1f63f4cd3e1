"""Python packages for a GPU machine that cannot fetch any: downloaded where there is a network, unpacked where not.

A PyTorch image has torch, torchvision (and with it numpy and pillow), most have pyarrow, pandas, psutil, regex,
safetensors, PyYAML and tqdm; what such images lack is the default list, 11 MB. pyarrow reads our index (55 MB), pandas
is imported by open_clip_train (12 MB): `also` fetches them where they are missing. Ray, MLflow, boto3 and timm are not
needed by anything here.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

OURS = {
    "pydantic": "pydantic",
    "pydantic-core": "pydantic_core",
    "annotated-types": "annotated_types",
    "typing-inspection": "typing_inspection",
    "obstore": "obstore",
    "open_clip_torch": "open_clip",
    "ftfy": "ftfy",
    "wcwidth": "wcwidth",
    "rich": "rich",
}
"""What our worker and these scripts import: distribution -> module."""
PEER = {"webdataset": "webdataset", "braceexpand": "braceexpand"}
"""What open_clip_train imports besides."""
USUAL = {
    name: name for name in ("pyarrow", "pandas", "psutil", "regex", "safetensors", "numpy", "tqdm", "huggingface_hub")
} | {"pyyaml": "yaml", "pillow": "PIL", "markdown-it-py": "markdown_it", "mdurl": "mdurl", "pygments": "pygments"}
"""What a PyTorch image usually has."""
MODULES = OURS | PEER | USUAL
LIMIT_BYTES = 64 << 20
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def missing() -> list[str]:
    """Distributions that this machine lacks."""
    return [name for name, module in MODULES.items() if not _here(module)]


def download(folder: Path, also: Sequence[str] = (), python: str = "3.12") -> int:
    """Fetch the wheels, at the versions that are installed here; their bytes in all. RuntimeError above 64 MiB."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [_pinned(name) for name in (*OURS, *PEER, *also)]
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    target = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platforms]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *target, "-d", str(folder), *wanted]
    subprocess.run(command, check=True)
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.whl")}
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        print(f"{size / 1e6:8.2f} MB  {name}")
    total = sum(sizes.values())
    print(f"{total / 1e6:8.2f} MB  in all")
    if total > LIMIT_BYTES:
        raise RuntimeError(f"{total:,} bytes are more than the {LIMIT_BYTES:,} that can be carried")
    return total


def unpack(folder: Path) -> Path:
    """Install those wheels that are missing here into a new folder; it must come into PYTHONPATH."""
    target = Path(tempfile.mkdtemp(prefix="wheels-"))
    wheels = [path for name in missing() for path in folder.glob(f"{name.replace('-', '_')}-[0-9]*.whl")]
    if wheels:
        options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--target", str(target)]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, *map(str, wheels)], check=True)
    return target


def _here(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _pinned(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"{name}=={version(name)}"
    except PackageNotFoundError:
        return name
