"""Model shapes by name: those shipped here (configs/*.json) and open_clip's own, both as open_clip JSON.

No torch, and open_clip is found but not imported, so that recipes are checked instantly. `check` refuses what cannot
be built or fed: misspelt settings, sizes that do not divide, generative models, tokenizers other than CLIP's.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError

SHIPPED = Path(__file__).parent / "configs"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


TOP = _words(
    "embed_dim vision_cfg text_cfg quick_gelu custom_text init_logit_scale init_logit_bias nonscalar_logit_scale"
)
BLOCK = _words(
    "width layers mlp_ratio ls_init_value act_kwargs norm_kwargs pool_type output_tokens final_ln_after_pool "
    "block_type qk_norm scaled_cosine_attn scale_heads scale_attn_inner scale_attn scale_fc"
)
VISION = BLOCK | _words(
    "head_width patch_size image_size patch_dropout attentional_pool attn_pooler_queries attn_pooler_heads no_ln_pre "
    "pos_embed_type timm_model_name timm_model_pretrained timm_pool timm_proj timm_proj_bias timm_drop timm_drop_path"
)
TEXT = BLOCK | _words(
    "context_length vocab_size heads embed_cls pad_id eos_id no_causal_mask proj_bias proj_type tokenizer_mode "
    "tokenizer_kwargs"
)


def shipped() -> list[str]:
    """Names of the shapes that come with this package."""
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def names() -> list[str]:
    """All names that `resolve` knows: the shipped ones first."""
    return [*shipped(), *sorted(_open_clip_configs())]


def resolve(name: str) -> dict[str, Any]:
    """The open_clip JSON configuration of a named shape; UserError with the nearest spelling if there is none."""
    path = SHIPPED / f"{name}.json" if name in shipped() else _open_clip_configs().get(name)
    if path is None:
        raise UserError(f"unknown model '{name}'", _nearest(name, names(), f"Shipped: {', '.join(shipped())}."))
    return json.loads(path.read_text())


def check(config: Mapping[str, Any]) -> None:
    """Refuse, with a UserError, a configuration that no network can be built from or no tokenizer here can feed."""
    if "multimodal_cfg" in config:
        raise UserError("generative models (multimodal_cfg) are not supported", "Choose a two-tower model.")
    for key in ("hf_model_name", "hf_tokenizer_name"):
        if key in config.get("text_cfg", {}):
            raise UserError(
                f"text_cfg.{key} needs a tokenizer other than CLIP's byte-pair encoding, which is the one there is",
                "Choose a model with CLIP's own tokenizer.",
            )
    _known(config, TOP, "")
    for name in ("embed_dim", "vision_cfg", "text_cfg"):
        if name not in config:
            raise UserError(f"a model configuration needs '{name}'", "See orchestrator/models/configs/ for examples.")
    _known(config["vision_cfg"], VISION, "vision_cfg.")
    _known(config["text_cfg"], TEXT, "text_cfg.")
    _divides(config["vision_cfg"], config["text_cfg"])


def image_size(config: Mapping[str, Any]) -> int:
    """Side of the square images in pixels; UserError where the model wants another shape."""
    size = config["vision_cfg"].get("image_size", 224)
    if isinstance(size, int):
        return size
    if size[0] != size[1]:
        raise UserError(f"images of {size[0]}x{size[1]} pixels are not supported", "Choose a model of square images.")
    return size[0]


def context_length(config: Mapping[str, Any]) -> int:
    """Largest number of tokens of a text."""
    return config["text_cfg"].get("context_length", 77)


def vocab_size(config: Mapping[str, Any]) -> int:
    """Number of token ids."""
    return config["text_cfg"].get("vocab_size", 49408)


def small(config: Mapping[str, Any]) -> dict[str, Any]:
    """A CPU-sized configuration of the same kind (ResNet or ViT image tower), vocabulary and context.

    All small ones of a kind have the same shape, so any of them can take any other's weights.
    """
    kept = {key: config[key] for key in ("quick_gelu", "init_logit_bias") if key in config}
    text = {key: config["text_cfg"][key] for key in ("context_length", "vocab_size") if key in config["text_cfg"]}
    vision: dict[str, Any] = {"image_size": 32, "width": 32, "head_width": 16, "layers": 2, "patch_size": 8}
    if isinstance(config["vision_cfg"].get("layers"), list):
        vision = {"image_size": 32, "width": 8, "head_width": 16, "layers": [1, 1, 1, 1]}
    return {"embed_dim": 32, **kept, "vision_cfg": vision, "text_cfg": text | {"width": 32, "heads": 2, "layers": 1}}


def _open_clip_configs() -> dict[str, Path]:
    spec = importlib.util.find_spec("open_clip")
    folders = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    return {path.stem: path for folder in folders for path in Path(folder, "model_configs").glob("*.json")}


def _nearest(word: str, allowed: Iterable[str], otherwise: str = "") -> str:
    by_lower = {name.lower(): name for name in allowed}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f"Did you mean '{by_lower[close[0]]}'?" if close else otherwise


def _known(settings: Any, allowed: frozenset[str], where: str) -> None:
    if not isinstance(settings, Mapping):
        raise UserError(f"{where.rstrip('.') or 'a model configuration'} must be a mapping, not {settings!r}")
    for key in settings:
        if key not in allowed:
            raise UserError(
                f"unknown model setting '{where}{key}'",
                _nearest(key, allowed, f"Known: {', '.join(sorted(allowed))}."),
            )


def _divides(vision: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    pairs = [("text_cfg", "width", text.get("width", 512), "heads", text.get("heads", 8))]
    if "timm_model_name" not in vision and not isinstance(vision.get("layers", 12), list):
        size, patch = vision.get("image_size", 224), vision.get("patch_size", 16)
        pairs.append(("vision_cfg", "width", vision.get("width", 768), "head_width", vision.get("head_width", 64)))
        if isinstance(size, int) and isinstance(patch, int):
            pairs.append(("vision_cfg", "image_size", size, "patch_size", patch))
    for tower, name, value, divisor_name, divisor in pairs:
        if divisor < 1 or value % divisor:
            raise UserError(
                f"{tower}: {name} {value} is not a multiple of {divisor_name} {divisor}",
                f"Change {tower}.{name} or {tower}.{divisor_name}.",
            )
