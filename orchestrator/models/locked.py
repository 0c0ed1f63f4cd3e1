"""Towers that keep the weights they start from: locked-image tuning (LiT, Zhai et al. 2022) and its mirror image.

A locked layer's weights take no gradient and, in batch norms, no statistics (`OpenClipModel.train` sees to that). What
lies below the first trained layer is then computed without keeping activations.
"""

from __future__ import annotations

from orchestrator.errors import UserError
from orchestrator.models.interface import Model
from orchestrator.models.layers import Layer, image_layers, text_layers


def lock(
    model: Model, *, image: bool = False, image_unlocked: int = 0, text: bool = False, text_unlocked: int = 0
) -> None:
    """Freeze the image tower, the text tower or both, but the last `unlocked` layers of each.

    Of the unlocked ones the first is the projection into the shared space, the second the last block with its norm
    (open_clip's `lock_image_tower`, `lock_text_tower`).

    Raises:
        UserError: more unlocked layers than there are, or a tower whose layers are not known.
    """
    if image:
        _freeze(image_layers(model), image_unlocked, "image")
    if text:
        _freeze(text_layers(model), text_unlocked, "text")
    model.train(model.training)


def _freeze(layers: list[Layer], unlocked: int, tower: str) -> None:
    if unlocked >= len(layers):
        raise UserError(
            f"locked.{tower}_unlocked is {unlocked}, and the {tower} tower has {len(layers)} layers in all",
            f"Unlock fewer of them, or remove locked.{tower}.",
        )
    for layer in layers[: len(layers) - unlocked]:
        for parameter in layer:
            parameter.requires_grad_(False)
