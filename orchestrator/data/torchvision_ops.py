"""Lets `import open_clip` work where torchvision was built for another torch (a CUDA wheel beside CPU torch).

Such a torchvision cannot load its C++ library, and its import then fails because it describes two operators that the
library would have declared: "operator torchvision::nms does not exist". Declaring their schemas is enough; nothing
here ever calls them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def declare_missing_torchvision_operators() -> tuple[str, ...]:
    """Declare the operators that the installed torchvision needs and cannot bring itself; their names (none if it is
    whole).

    Call it just before importing open_clip or torchvision. Calling it again does nothing.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or _library_loads([Path(folder) for folder in spec.submodule_search_locations or ()]):
        return ()
    missing = tuple(name for name in SCHEMAS if not hasattr(torch.ops.torchvision, name))
    for name in missing:
        torch.library.define(f"torchvision::{name}", SCHEMAS[name])
    return missing


def _library_loads(folders: list[Path]) -> bool:
    """Whether torchvision's C++ library, which declares all its operators, can be loaded beside this torch."""
    libraries = [path for folder in folders for pattern in ("_C*.so", "_C*.pyd") for path in folder.glob(pattern)]
    try:
        for path in libraries:
            torch.ops.load_library(str(path))
    except OSError:
        return False
    return bool(libraries)
