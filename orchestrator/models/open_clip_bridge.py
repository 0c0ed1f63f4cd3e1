"""The one place that imports open_clip: networks from its JSON configurations, and its pretrained weights.

A network's initial weights are a function of (configuration, seed) alone: they are drawn on the CPU from a generator
state of their own, and the caller's random state is left as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import nn

from orchestrator.data.draws import integer
from orchestrator.data.torchvision_ops import declare_missing_torchvision_operators
from orchestrator.errors import UserError
from orchestrator.models.catalog import check
from orchestrator.models.clip import OpenClipModel


def open_clip() -> ModuleType:
    """The open_clip package, importable also beside a torchvision that was built for another torch."""
    declare_missing_torchvision_operators()
    import open_clip

    return open_clip


def create(config: Mapping[str, Any], seed: int = 0) -> OpenClipModel:
    """A CLIP from an open_clip configuration (embed_dim, vision_cfg, text_cfg, ...), initialised from `seed`, on the
    CPU.

    UserError where this code (catalog.check) or open_clip itself refuses the configuration.
    """
    check(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer(seed, "init") % 2**63)
        network = _network(copy.deepcopy(dict(config)))
    return OpenClipModel(network, config)


def _network(config: dict[str, Any]) -> nn.Module:
    package = open_clip()
    separate_text_tower = config.pop("custom_text", False)
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False  # building a network never downloads weights
    try:
        return (package.CustomTextCLIP if separate_text_tower else package.CLIP)(**config)
    except (TypeError, RuntimeError, AssertionError) as error:
        raise UserError(f"open_clip cannot build this model: {error}", "Check its vision_cfg and text_cfg.") from error
