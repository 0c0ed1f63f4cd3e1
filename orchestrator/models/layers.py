"""The layers of a model's towers, from input to output: what locking and layer-wise learning rates count by.

As in open_clip and timm: the embeddings are the first layer, each block is one, the norm after the last block belongs
to it, and the projection into the shared space is the last.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from orchestrator.errors import UserError
from orchestrator.models.interface import Model

Layer = list[nn.Parameter]


def image_layers(model: Model) -> list[Layer]:
    """The image tower's parameters by layer; UserError for a tower of unknown structure."""
    visual = _network(model).visual
    if hasattr(visual, "trunk"):
        return _timm(visual)
    if hasattr(visual, "layer1"):
        stem = [visual.conv1, visual.bn1, visual.conv2, visual.bn2, visual.conv3, visual.bn3]
        blocks = [block for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4) for block in stage]
        return _layers([stem, *([block] for block in blocks), [visual.attnpool]])
    embeddings = [visual.conv1, visual.class_embedding, visual.positional_embedding, visual.ln_pre]
    *blocks, last = visual.transformer.resblocks
    pools = [visual.attn_pool, getattr(visual, "attn_pool_contrastive", None)]
    return _layers([embeddings, *([block] for block in blocks), [last, *pools, visual.ln_post], [visual.proj]])


def text_layers(model: Model) -> list[Layer]:
    """The text tower's parameters by layer; UserError for a tower of unknown structure."""
    network = _network(model)
    tower = getattr(network, "text", network)
    embeddings = [tower.token_embedding, tower.positional_embedding, getattr(tower, "cls_emb", None)]
    *blocks, last = tower.transformer.resblocks
    return _layers([embeddings, *([block] for block in blocks), [last, tower.ln_final], [tower.text_projection]])


def _network(model: Model) -> Any:
    network = getattr(model, "network", None)
    if network is None:
        raise UserError(
            f"the layers of a {type(model).__name__} are not known", "Choose an open_clip model, or do without."
        )
    return network


def _layers(groups: Iterable[Iterable[nn.Module | nn.Parameter | None]]) -> list[Layer]:
    """The parameters of each group of modules and parameters; groups without any fall away."""
    found = []
    for group in groups:
        layer: Layer = []
        for part in group:
            layer.extend([part] if isinstance(part, nn.Parameter) else [] if part is None else part.parameters())
        found.append(layer)
    return [layer for layer in found if layer]


def _timm(visual: Any) -> list[Layer]:
    """By the table that every timm model brings, and open_clip's head on top."""
    from timm.models import group_parameters

    if not hasattr(visual.trunk, "group_matcher"):
        raise UserError("this timm image tower does not tell its layers", "Choose another model, or do without.")
    names = group_parameters(visual.trunk, visual.trunk.group_matcher(coarse=False))
    layers = [[visual.trunk.get_parameter(name) for name in names[number]] for number in sorted(names)]
    return _layers([*layers, [visual.head]])
