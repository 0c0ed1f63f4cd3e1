"""A digest of the code that decides a stage's result, for provenance.

Code is not identity (a changed comment must not retrain a model); versions are, and a person raises them. The digest
is kept in the manifest, so that a plan can say that the code of a cached stage has changed while its version has
not.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from pathlib import Path

SUFFIXES = (".py", ".json")


@functools.cache
def source_digest(package: str) -> str:
    """SHA-256 over the code and settings files of a package or module, which is not imported.

    Raises:
        ModuleNotFoundError: there is no such package.
    """
    digest = hashlib.sha256()
    root = _path(package)
    files = sorted(p for p in root.rglob("*") if p.suffix in SUFFIXES) if root.is_dir() else [root]
    for file in files:
        name = file.relative_to(root).as_posix()
        digest.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _path(package: str) -> Path:
    """Folder or file of a package; found from its top, for finding it directly would import what is above it."""
    top, *rest = package.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(package)
    path = Path(spec.origin).parent.joinpath(*rest) if spec.submodule_search_locations else Path(spec.origin)
    if path.is_dir():
        return path
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    raise ModuleNotFoundError(package)
