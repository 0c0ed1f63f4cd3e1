"""Manual weight inheritance: a smaller CLIP cut out of a bigger trained one by a fixed rule (TinyCLIP, section "weight
inheritance").

Depth: student layer i takes source layer i * floor(D_source / D_student): every step-th from the front, which is not
uniform where the ratio is not whole. Width: the leading block of every tensor; for the fused q/k/v matrices the
leading heads of each of q, k and v, so heads stay whole. Image and text tower follow the same rule apart from each
other; ResNets stage by stage.

Every tensor of the student is filled exactly once. The logit scale is the student's own where anything is cut; equal
shapes are a copy, scale included. This module knows tensors and names; learned masks, folded into dense weights, would
be another module beside it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.errors import UserError
from orchestrator.models.captioner import Captioner
from orchestrator.models.clip import OpenClipModel
from orchestrator.models.interface import Model

LAYER = re.compile(r"^(?P<stack>.*\b(?:resblocks|layer\d))\.(?P<number>\d+)\.(?P<rest>.*)$")
OWN = frozenset({"logit_scale", "logit_bias"})
State = Mapping[str, Tensor]


def inherit(student: Model, source: Model, mode: str = "manual") -> Model:
    """Fill `student` with weights cut out of `source` (left unchanged); returns `student`.

    A captioner takes its image tower from a CLIP, or all of a captioner of the same structure.

    UserError where the rule has no meaning: deeper or wider student, other patch, image or head size, other
    vocabulary, towers of another kind. Warns where the activation functions differ.
    """
    if mode != "manual":
        raise UserError(f"unknown inheritance mode '{mode}'", "The one mode there is, is 'manual'.")
    if isinstance(student, Captioner) or isinstance(source, Captioner):
        return _captioner(student, source)
    if not (isinstance(student, OpenClipModel) and isinstance(source, OpenClipModel)):
        raise UserError("weights can be inherited between open_clip models only", "Train this model without init:.")
    _compatible(student, source)
    own, given = student.network.state_dict(), source.network.state_dict()
    head_sizes = {"visual.": _head_size(student.network.visual), "": _head_size(student.network.transformer)}
    inherited = cut(own, given, head_sizes)
    equal = all(own[name].shape == given[name].shape for name in own) and own.keys() == given.keys()
    kept = {name: own[name] for name in own.keys() - inherited.keys()}
    student.network.load_state_dict(given if equal else inherited | kept)
    return student


def _captioner(student: Model, source: Model) -> Model:
    """All of a captioner of the same structure, or the image tower of a CLIP."""
    if student.structure() == source.structure():
        student.load_state_dict(source.state_dict())
        return student
    if not (isinstance(student, Captioner) and isinstance(source, OpenClipModel)):
        raise UserError(
            "a captioner inherits from a captioner of the same shape and options, or its image tower from a CLIP",
            "Choose such a model, or train without init:.",
        )
    own, given = student.network.visual, source.network.visual
    heads, theirs = _head_size(own), _head_size(given)
    if heads != theirs:
        raise UserError(
            f"the captioner has image head size {heads}, the model it inherits from {theirs}", "Give both the same."
        )
    own.load_state_dict(cut(own.state_dict(), given.state_dict(), {"": heads}))
    return student


def layer_map(source_depth: int, student_depth: int) -> list[int]:
    """For each layer of the student, the source layer it takes (official `weight_inherit`): i * floor(D_source /
    D_student).
    """
    if student_depth > source_depth:
        raise UserError(
            f"a student of {student_depth} layers cannot inherit from a source of {source_depth}",
            "Give the student at most as many layers as the source.",
        )
    return [layer * (source_depth // student_depth) for layer in range(student_depth)]


def cut(student: State, source: State, head_sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """The student's tensors (all but logit scale and bias), each the leading block of the source tensor the rule gives
    it.

    Args:
        student: gives names and shapes.
        source: gives values.
        head_sizes: channels per attention head of each tower, by the prefix of its names; the longest prefix counts.
    """
    layers = _layers(student, source)
    inherited = {}
    for name, tensor in student.items():
        if name in OWN:
            continue
        match = LAYER.match(name)
        origin = name
        if match:
            stack, number, rest = match.group("stack", "number", "rest")
            origin = f"{stack}.{layers[stack][int(number)]}.{rest}"
        if origin not in source:
            raise UserError(f"the source model has no '{origin}'", "Student and source need towers of the same kind.")
        prefix = max((prefix for prefix in head_sizes if name.startswith(prefix)), key=len)
        inherited[name] = _block(name, source[origin], tensor.shape, head_sizes[prefix])
    return inherited


def _layers(student: State, source: State) -> dict[str, list[int]]:
    """For each stack of layers, the source layer of each of the student's."""

    def depths(state: State) -> dict[str, int]:
        found: dict[str, int] = {}
        for match in filter(None, map(LAYER.match, state)):
            found[match["stack"]] = max(found.get(match["stack"], 0), int(match["number"]) + 1)
        return found

    source_depths = depths(source)
    return {stack: layer_map(source_depths.get(stack, 0), depth) for stack, depth in depths(student).items()}


def _block(name: str, tensor: Tensor, shape: torch.Size, head_size: int) -> Tensor:
    """The leading block of that shape; of fused q/k/v, the leading heads of each."""
    if len(shape) != tensor.ndim or any(wanted > there for wanted, there in zip(shape, tensor.shape)):
        raise UserError(
            f"'{name}' is {list(shape)} in the student and only {list(tensor.shape)} in the source",
            "A student takes its weights from a model at least as large in every respect.",
        )
    if name.endswith(("in_proj_weight", "in_proj_bias")):
        by_head = tensor.unflatten(0, (3, -1, head_size))
        heads = shape[0] // (3 * head_size)
        leading = (slice(None), slice(heads), slice(None), *(slice(n) for n in shape[1:]))
        return by_head[leading].flatten(0, 2).clone()
    return tensor[tuple(slice(n) for n in shape)].clone()


def _compatible(student: OpenClipModel, source: OpenClipModel) -> None:
    """Refuse what the shapes of the tensors would not tell, or would tell unkindly."""
    for model in (student, source):
        if hasattr(model.network, "text") or "timm_model_name" in model.config["vision_cfg"]:
            raise UserError(
                "weights can be inherited between open_clip's own ViT, ResNet and text towers only",
                "Use a model without timm_model_name and custom_text.",
            )
    facts, source_facts = _facts(student), _facts(source)
    for name, value in facts.items():
        if value != source_facts[name]:
            raise UserError(
                f"the student has {name} {value}, the model it inherits from {source_facts[name]}",
                f"Give both the same {name}.",
            )
    mine, theirs = _activations(student), _activations(source)
    if mine != theirs:
        warnings.warn(
            f"inherited weights were trained with {'/'.join(theirs)} and will run with {'/'.join(mine)}: "
            "set quick_gelu in the student's configuration as in the source's",
            stacklevel=3,
        )


def _facts(model: OpenClipModel) -> dict[str, Any]:
    """What must be equal in student and source."""
    visual = model.network.visual
    resnet = hasattr(visual, "layer1")
    return {
        "image tower": "ResNet" if resnet else "ViT",
        "image size": visual.image_size if isinstance(visual.image_size, tuple) else (visual.image_size,) * 2,
        "patch size": None if resnet else visual.patch_size,
        "image head size": _head_size(visual),
        "text head size": _head_size(model.network.transformer),
        "vocabulary": model.network.vocab_size,
        "patch position embedding": model.config["vision_cfg"].get("pos_embed_type", "learnable"),
    }


def _head_size(tower: Any) -> int:
    """Channels of one attention head."""
    if hasattr(tower, "attnpool"):  # ResNet: the pool is its only attention
        return tower.attnpool.c_proj.in_features // tower.attnpool.num_heads
    attention = next((module for module in tower.modules() if isinstance(module, nn.MultiheadAttention)), None)
    if attention is None:
        raise UserError(
            "weights cannot be inherited through open_clip's custom attention blocks",
            "Use a model without block_type, qk_norm and scale_* settings.",
        )
    return attention.head_dim


def _activations(model: OpenClipModel) -> list[str]:
    """Names of the activation functions of the transformers' feed-forward layers."""
    blocks: list[Any] = [module for module in model.modules() if hasattr(module, "mlp")]
    return sorted({type(block.mlp.gelu).__name__ for block in blocks})
