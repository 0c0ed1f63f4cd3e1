"""`Backbone`: an image classifier without its last layer, EfficientNet-Lite trained on ImageNet. Images only.

The network is that of the package efficientnet-lite-pytorch (Liu and Tan's EfficientNet-Lite: no squeeze-and-excite,
ReLU6), the weights come from another package (packages.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.data.preprocess import Preprocess, Tokenizer
from orchestrator.errors import UserError
from orchestrator.models.interface import Model

NAME = "efficientnet-lite0"
SIZE = 224
SHIFT, SCALE = 127 / 255, 128 / 255
"""It was trained on (x - 127) / 128 of pixels from 0 to 255."""


class Backbone(Model):
    """`config` is {"name": of the network in efficientnet_lite_pytorch}."""

    capabilities: ClassVar[frozenset[str]] = frozenset({"encode_image"})

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise UserError(
                "EfficientNet-Lite's network is not installed",
                "pip install --no-deps efficientnet-lite-pytorch==0.1.0",
            ) from None
        self.config = dict(config)
        self.network = EfficientNet.from_name(self.config["name"])
        self.network._fc = nn.Identity()

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> Backbone:
        return cls(config)

    def structure(self) -> dict[str, Any]:
        return {"class": f"{type(self).__module__}:{type(self).__qualname__}", "config": self.config}

    def encode_image(self, images: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] to L2-normalised features [B, 1280], averaged over the image."""
        found = self.network.extract_features(images)
        return F.normalize(found.float().mean((2, 3)), dim=-1)


def load(folder: Path) -> tuple[Model, Preprocess, Tokenizer]:
    """The backbone in a package's folder. Its tokenizer is nobody's: it has no text side."""
    (path,) = (folder / "models").glob("*.pth")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    model = Backbone({"name": NAME})
    model.network.load_state_dict({name: weights[name] for name in model.network.state_dict()})
    return model.eval(), Preprocess(SIZE, mean=(SHIFT,) * 3, std=(SCALE,) * 3), Tokenizer()
