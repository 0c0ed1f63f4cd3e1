"""Decoded images of a block's samples, a few at a time: what operators with a model look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from orchestrator.curation.block import Block
    from orchestrator.data.preprocess import Preprocess, Tokenizer


@dataclass(frozen=True)
class Pictures:
    """Some of a block's samples.

    Attributes:
        places: in the block, of those whose images could be decoded, [m].
        pixels: their images as a model takes them, [m, 3, H, W] float32.
        bad: place -> reason, of the others.
    """

    places: list[int]
    pixels: Tensor
    bad: Mapping[int, str]


def pictures(
    block: Block, places: np.ndarray, preprocess: Preprocess, batch: int, device: torch.device
) -> Iterator[Pictures]:
    """The samples at these places of a block [n], up to `batch` at once."""
    for start in range(0, len(places), batch):
        part = places[start : start + batch]
        found, reasons = block.where(part).decoded(preprocess.decode)
        good = [image for image in found if image is not None]
        side = preprocess.image_size
        stacked = np.stack(good) if good else np.zeros((0, 3, side, side), np.uint8)
        yield Pictures(
            places=[place for place, image in zip(part.tolist(), found) if image is not None],
            pixels=preprocess.normalise(torch.from_numpy(stacked).to(device)),
            bad={place: reason for place, reason in zip(part.tolist(), reasons.tolist()) if reason},
        )


@torch.inference_mode()
def scored(
    block: Block,
    preprocess: Preprocess,
    tokenizer: Tokenizer,
    batch: int,
    device: torch.device,
    score: Callable[[Tensor, Tensor], Tensor],
) -> tuple[np.ndarray, np.ndarray]:
    """Reasons [n] of a block's samples whose images cannot be decoded, else "", and scores [n] float32 of the others.

    `score` takes images [m, 3, H, W] and the token ids of their primary captions [m, L], and gives [m].
    """
    captions = block.column("caption")
    reasons, scores = np.full(len(block), "", object), np.full(len(block), np.nan, np.float32)
    for some in pictures(block, np.arange(len(block)), preprocess, batch, device):
        for place, reason in some.bad.items():
            reasons[place] = reason
        if some.places:
            tokens = tokenizer([captions[place] for place in some.places]).to(device)
            scores[some.places] = score(some.pixels, tokens).float().cpu().numpy()
    return reasons, scores
