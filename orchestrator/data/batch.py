"""What a loader hands to a training step: `Views` asks, `Batch` answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Views:
    """What a method sees of a sample.

    Attributes:
        images: number of augmented image views (A-CLIP 3, SLIP 3, CLIP 1).
        captions: number of captions drawn by the caption policy.
        embeddings: names of Embeddings inputs to attach by uid.
    """

    images: int = 1
    captions: int = 1
    embeddings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch, or a micro-batch of it.

    Attributes:
        images: per view, [B, 3, H, W]: uint8 from the loader, float32 and normalised once the loop has prepared it.
        tokens: per caption, [B, L] int64, cut to the longest caption of this rank's part.
        uids: sample ids, 32 hex digits each.
        embeddings: name -> [B, ...].
    """

    images: tuple[Tensor, ...]
    tokens: tuple[Tensor, ...]
    uids: tuple[str, ...]
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.uids)
