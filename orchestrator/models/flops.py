"""How much arithmetic a forward pass does, and how much a device could do.

Counted is what is really computed, after cuts, groups, patch dropout and the last block's short cut (models/clip.py):
two operations (FLOPs) a multiply-add, in matrix products, convolutions and attention; nothing for norms, activations
and softmax. With w channels, m hidden ones of the MLP, L tokens and H heads, a sequence costs

    a block               8 L w^2 + 4 L w m + 4 L^2 w      (causal attention counts whole)
    the last block        8 w^2 + 4 w m + 4 L w H          where one token is read
    patches, projection   6 patches side^2 w,  2 w d

Image towers other than vision transformers are measured once, on one image. A training step costs three forward passes
for what is trained, one for what is frozen; recomputation counts nothing (model FLOPs, Chowdhery et al. 2022).
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from orchestrator.models.block import Block, PatchDropout
from orchestrator.models.captioner import Captioner
from orchestrator.models.clip import OpenClipModel
from orchestrator.models.interface import Model

PEAK: dict[str, dict[str, float]] = {
    "A100": {"bf16": 312e12, "fp16": 312e12, "tf32": 156e12, "fp32": 19.5e12},
    "H100": {"bf16": 989e12, "fp16": 989e12, "tf32": 494e12, "fp32": 67e12},
    "H100 PCIe": {"bf16": 756e12, "fp16": 756e12, "tf32": 378e12, "fp32": 51e12},
    "H100 NVL": {"bf16": 835e12, "fp16": 835e12, "tf32": 417e12, "fp32": 60e12},
    "H200": {"bf16": 989e12, "fp16": 989e12, "tf32": 494e12, "fp32": 67e12},
    "H200 NVL": {"bf16": 835e12, "fp16": 835e12, "tf32": 417e12, "fp32": 60e12},
    "L40S": {"bf16": 362e12, "fp16": 362e12, "tf32": 183e12, "fp32": 91.6e12},
    "L4": {"bf16": 121e12, "fp16": 121e12, "tf32": 60e12, "fp32": 30.3e12},
    "A10G": {"bf16": 70e12, "fp16": 70e12, "tf32": 35e12, "fp32": 31.5e12},
    "V100": {"fp16": 125e12, "fp32": 15.7e12},
    "V100 PCIE": {"fp16": 112e12, "fp32": 14e12},
    "T4": {"fp16": 65e12, "fp32": 8.1e12},
    "RTX 4090": {"bf16": 165e12, "fp16": 165e12, "tf32": 82.6e12, "fp32": 82.6e12},
}
"""FLOP/s by words of the device's name, from NVIDIA's data sheets: dense (without sparsity), products accumulated in
fp32. A name without form factor means the SXM module.
"""


def peak_flops(device_name: str, precision: str) -> float | None:
    """FLOP/s that the device's maker promises at that precision, None where it is not known (CPUs, for one).

    Args:
        device_name: as `torch.cuda.get_device_name` gives it, for instance "NVIDIA H100 80GB HBM3".
        precision: bf16, fp16, tf32 or fp32.
    """
    words = set(device_name.replace("-", " ").split())
    known = [name for name in PEAK if words.issuperset(name.split())]
    return PEAK[max(known, key=len)].get(precision) if known else None


def forward_flops(model: Model, images: int = 0, tokens: Tensor | None = None) -> tuple[float, float]:
    """Operations of the image tower on so many images, and of the text tower on token ids [M, L].

    (0, 0) for models that are not open_clip's. Training or eval mode decides whether patches are dropped.
    """
    if not isinstance(model, OpenClipModel):
        return 0.0, 0.0
    text = 0.0 if tokens is None else _text(model, tokens)
    return images * _one_image(model) if images else 0.0, text


def captioner_flops(model: Captioner, images: int, tokens: Tensor) -> float:
    """Operations of a captioner's forward pass over images and their captions [B, T], padding read but not
    predicted.
    """
    visual, text = model.network.visual, model.text_tower
    patches, width, seen_width = (
        visual.grid_size[0] * visual.grid_size[1],
        text.transformer.width,
        visual.transformer.width,
    )
    seen, steps = 1 + patches, tokens.shape[1] - 1
    image = 2 * patches * visual.conv1.weight.numel() + _stack(visual.transformer, seen, read=False)
    book = 2 * seen * seen_width * model.book.codes
    cross = 4 * width * (steps * width + seen * seen_width + steps * seen)
    caption = _stack(text.transformer, steps, read=False) + len(text.transformer.resblocks) * cross
    predicted = float(tokens.argmax(dim=1).sum())
    return images * (image + book + caption) + predicted * 2 * text.token_embedding.weight.numel()


def _text(model: OpenClipModel, tokens: Tensor) -> float:
    tower = model.text_tower
    projection = _products(tower.text_projection)
    if not model.cuts_texts:
        length = model.context_length + (getattr(tower, "cls_emb", None) is not None)
        return len(tokens) * (_stack(tower.transformer, length, read=False) + projection)
    read = isinstance(tower.transformer.resblocks[0], Block)
    groups = model.plan(tokens).groups
    return sum(rows * (_stack(tower.transformer, length, read) + projection) for rows, length in groups)


def _one_image(model: OpenClipModel) -> float:
    visual = model.network.visual
    if not model.reads_class_token:
        return _measured(model)
    patches = visual.grid_size[0] * visual.grid_size[1]
    dropout = visual.patch_dropout
    kept = dropout.kept(patches) if isinstance(dropout, PatchDropout) else patches
    embedding = 2 * patches * visual.conv1.weight.numel()
    return embedding + _stack(visual.transformer, 1 + kept, read=True) + _products(visual.proj)


def _stack(transformer: Any, length: int, read: bool) -> float:
    """One sequence through all blocks; with `read`, one token of the last is looked at."""
    *blocks, last = transformer.resblocks
    flops = sum(_block(block, length) for block in blocks)
    return flops + (_last_block(last, length) if read else _block(last, length))


def _block(block: Any, length: int) -> float:
    width, hidden = block.ln_1.normalized_shape[0], block.mlp.c_fc.out_features
    return length * (8 * width**2 + 4 * width * hidden + 4 * length * width)


def _last_block(block: Block, length: int) -> float:
    width, hidden = block.ln_1.normalized_shape[0], block.mlp.c_fc.out_features
    return 8 * width**2 + 4 * width * hidden + 4 * length * width * block.attn.num_heads


def _products(projection: nn.Module | Tensor | None) -> float:
    """One vector through a matrix."""
    weight = projection.weight if isinstance(projection, nn.Linear) else projection
    return 2.0 * weight.numel() if isinstance(weight, Tensor) else 0.0


_measurements: WeakKeyDictionary[Model, float] = WeakKeyDictionary()


def _measured(model: OpenClipModel) -> float:
    """One image through the image tower, counted by PyTorch; remembered as long as the model lives."""
    from torch.utils.flop_counter import FlopCounterMode

    if model not in _measurements:
        modes = {module: module.training for module in model.modules()}
        side, place = model.network.visual.image_size, model.logit_scale
        height, width = side if isinstance(side, tuple) else (side, side)
        image = torch.zeros(1, 3, height, width, device=place.device, dtype=place.dtype)
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter, torch.no_grad():
            model.eval().encode_image(image)
        for module, mode in modes.items():
            module.training = mode
        _measurements[model] = float(counter.get_total_flops())
    return _measurements[model]


def _cpu_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    batch, heads, length, channels = query
    return 2 * batch * heads * length * key[2] * (channels + value[3])


CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention}
"""What PyTorch's counter does not know: the fused attention of CPUs."""
