"""How a network computes: patch dropout, recomputation, compilation, memory format.

None of it is part of what a model is: names and shapes of weights stay, and a saved model knows nothing of it. An
`init:` chain therefore turns patch dropout on for the pre-training and off for the unmasked tuning after it by a
setting of the training alone (FLIP, Li et al. 2023).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from orchestrator.errors import UserError
from orchestrator.models.block import PatchDropout
from orchestrator.models.clip import OpenClipModel

VARIANTS = 64
"""Of one block, that PyTorch may compile before it gives up: two towers, the last block's, with and without gradient,
in training and evaluation, for a size of one and for more are all different to it.
"""


def set_patch_dropout(model: OpenClipModel, share: float) -> None:
    """Leave out this share of an image's patches in training, 0 for none, whatever the model's configuration says.

    UserError for image towers other than open_clip's vision transformer.
    """
    visual = model.network.visual
    if not hasattr(visual, "patch_dropout"):
        raise UserError(
            "patch_dropout needs a vision transformer of open_clip's own",
            "Remove patch_dropout, or choose a model without timm_model_name whose layers are a number.",
        )
    visual.patch_dropout = PatchDropout(share) if share else nn.Identity()


def recompute_activations(model: OpenClipModel) -> None:
    """Keep only the blocks' inputs for the backward pass and compute the rest again there.

    UserError for image towers that cannot (ResNets, some of timm's).
    """
    visual, remedy = model.network.visual, "Remove `recompute`; a smaller micro_batch saves memory, too."
    if hasattr(visual, "trunk"):
        try:
            visual.trunk.set_grad_checkpointing(True)
        except (AttributeError, AssertionError, NotImplementedError) as error:
            raise UserError("this timm image tower cannot recompute its activations", remedy) from error
    elif not hasattr(visual, "transformer"):
        raise UserError("a ResNet image tower cannot recompute its activations", remedy)
    for stack in model.stacks():
        stack.grad_checkpointing = True


def compile_blocks(model: OpenClipModel, backend: str = "inductor") -> None:
    """Compile block by block, which starts sooner than whole towers; an image tower without blocks as a whole.

    Equal blocks share what was compiled. A first call compiles for its shapes, a second length or batch size for all.
    Names of weights stay.
    """
    torch._dynamo.config.cache_size_limit = max(VARIANTS, torch._dynamo.config.cache_size_limit)
    for stack in model.stacks():
        for block in stack.resblocks:
            block.compile(backend=backend)
    if not hasattr(model.network.visual, "transformer"):
        model.network.visual.compile(backend=backend)


def use_channels_last(model: OpenClipModel) -> None:
    """Lay convolutions out as GPUs' tensor cores want them, in image towers made of them; others are left alone."""
    visual: Any = model.network.visual
    if hasattr(visual, "layer1") or hasattr(visual, "trunk"):
        visual.to(memory_format=torch.channels_last)
