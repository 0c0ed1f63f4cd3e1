"""Less arithmetic, the same function: features and gradients equal plain open_clip's."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.models import lengths
from orchestrator.models.clip import OpenClipModel
from orchestrator.models.open_clip_bridge import open_clip

TEXT = {"context_length": 40, "vocab_size": 300, "width": 32, "heads": 2, "layers": 3}
VISION = {"image_size": 48, "patch_size": 8, "width": 48, "layers": 3, "head_width": 16}
SHAPES = {
    "plain": {},
    "one layer": {"text": {"layers": 1}, "vision": {"layers": 1}},
    "many patches": {"vision": {"patch_size": 6}},
    "layer scale": {"text": {"ls_init_value": 0.1}, "vision": {"ls_init_value": 0.1}},
    "quick gelu, projection with bias": {"text": {"proj_bias": True}, "quick_gelu": True},
    "no projection": {"text": {"proj_type": "none", "width": 16}},
    "norm after pooling": {"vision": {"final_ln_after_pool": True, "no_ln_pre": True}},
    "average pooling": {"vision": {"pool_type": "avg"}},
    "attentional pooling": {"vision": {"attentional_pool": True, "attn_pooler_queries": 3, "attn_pooler_heads": 2}},
    "experimental blocks": {"text": {"qk_norm": True}, "vision": {"scale_heads": True}},
    "separate text tower": {"custom_text": True},
    "bidirectional text": {"custom_text": True, "text": {"no_causal_mask": True, "pool_type": "last"}},
    "appended class token": {"custom_text": True, "text": {"embed_cls": True}},
    "ResNet": {"vision": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64}},
}


def pair(text=None, vision=None, custom_text=False, **extra) -> tuple[nn.Module, OpenClipModel]:
    """Plain open_clip's network, and ours with the same weights."""
    config = {"embed_dim": 16, "vision_cfg": VISION | (vision or {}), "text_cfg": TEXT | (text or {}), **extra}
    torch.manual_seed(0)
    package = open_clip()
    plain = (package.CustomTextCLIP if custom_text else package.CLIP)(**copy.deepcopy(config))
    with torch.no_grad():
        for parameter in plain.parameters():  # zero biases and unit scales would hide mistakes
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return plain, OpenClipModel(copy.deepcopy(plain), config)


def texts(sizes: list[int], vocabulary: int = 300, length: int = 40) -> Tensor:
    """Captions of these many tokens, zero-padded to `length`."""
    tokens = torch.zeros(len(sizes), length, dtype=torch.int64)
    for row, size in zip(tokens, sizes, strict=True):
        row[:size] = torch.randint(1, vocabulary - 2, (size,))
        row[size - 1] = vocabulary - 1
    return tokens


def gradients(module: nn.Module, features: Tensor) -> dict[str, Tensor]:
    """Of a scalar that weights every feature differently; zeros for what takes no part."""
    module.zero_grad()
    (features * torch.linspace(-1, 1, features.numel(), dtype=features.dtype).view_as(features)).sum().backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in module.named_parameters()}


def assert_same(plain: nn.Module, model: OpenClipModel, images: Tensor, tokens: Tensor, tolerance: float) -> None:
    for ours, theirs in (
        (model.encode_image(images), F.normalize(plain.encode_image(images), dim=-1)),
        (model.encode_text(tokens), F.normalize(plain.encode_text(tokens), dim=-1)),
    ):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()
        found, expected = gradients(model.network, ours), gradients(plain, theirs)
        assert found.keys() == expected.keys()
        scale = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
        for name, gradient in expected.items():
            assert (found[name] - gradient).norm() <= tolerance * scale, name


@pytest.fixture(autouse=True)
def small_price(monkeypatch):
    """Toy batches fall into groups, too."""
    monkeypatch.setattr(lengths, "price", lambda width, gpu: 3.0)


def test_reduced_precision_is_as_good_as_open_clips():
    plain, model = pair()
    images, tokens = torch.randn(5, 3, 48, 48), texts([3, 9, 40, 4, 12])
    exact = torch.cat([model.encode_image(images), model.encode_text(tokens)])
    with torch.autocast("cpu", torch.bfloat16):
        ours = torch.cat([model.encode_image(images), model.encode_text(tokens)])
        theirs = torch.cat([plain.encode_image(images, normalize=True), plain.encode_text(tokens, normalize=True)])
    assert (ours - exact).norm() <= 1.5 * (theirs - exact).norm()


def test_a_text_does_not_depend_on_its_place_in_the_batch():
    _, model = pair()
    tokens = texts([3, 9, 4, 40, 3, 12, 5])
    expected = torch.cat([model.encode_text(row[None]) for row in tokens])
    torch.testing.assert_close(model.encode_text(tokens), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_features_and_gradients_are_open_clips(shape, training):
    plain, model = pair(**SHAPES[shape])
    size = SHAPES[shape].get("vision", {}).get("image_size", 48)
    tokens = texts([3, 9, 4, 40, 3, 12, 5])
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        plain.to(dtype).train(training)
        model.to(dtype).train(training)
        assert_same(plain, model, torch.randn(7, 3, size, size, dtype=dtype), tokens, tolerance)
