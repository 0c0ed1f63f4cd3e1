"""Options of plain CLIP: there are none. Batch, length and optimiser belong to the stage; the shape belongs to
`model:`.
"""

from __future__ import annotations

from typing import ClassVar

from orchestrator.methods.config import MethodConfig


class Clip(MethodConfig):
    """Contrastive image-text training (CLIP): matching pairs of a batch against all others."""

    runner: ClassVar[str] = "orchestrator.methods.clip.method:ClipMethod"
