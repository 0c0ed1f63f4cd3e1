"""The open_clip bridge and the two-tower model: initial weights, cut tokens, parameter counts."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from orchestrator.errors import UserError
from orchestrator.models import catalog
from orchestrator.models.clip import OpenClipModel
from orchestrator.models.count import count
from orchestrator.models.open_clip_bridge import create, open_clip

SHORT = {"context_length": 24, "vocab_size": 200, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}


def config(custom_text: bool = False, **text) -> dict:
    extra = {"custom_text": True} if custom_text else {}
    return {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": SHORT | text, **extra}


def tokens(length: int) -> Tensor:
    """Four captions of 3 to `length` tokens, zero-padded to `length`; the end-of-text token is the largest id."""
    rows = torch.zeros(4, length, dtype=torch.int64)
    generator = torch.Generator().manual_seed(length)
    for row, size in zip(rows, (3, length, max(3, length // 2), max(3, length - 1)), strict=True):
        row[:size] = torch.randint(1, 190, (size,), generator=generator)
        row[size - 1] = 199
    return rows


def features_and_gradients(model: OpenClipModel, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    features = model.encode_text(tokens)
    (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
    return features, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same_as_full_length(model: OpenClipModel, short: Tensor) -> None:
    full = torch.zeros(len(short), 24, dtype=torch.int64)
    full[:, : short.shape[1]] = short
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-13)):
        model = model.to(dtype)
        cut, cut_gradients = features_and_gradients(model, short)
        whole, gradients = features_and_gradients(model, full)
        reference = torch.nn.functional.normalize(model.network.encode_text(full), dim=-1)
        torch.testing.assert_close(cut, whole, rtol=0, atol=tolerance)
        torch.testing.assert_close(cut, reference, rtol=0, atol=tolerance)
        assert cut_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            largest = max(1.0, gradient.abs().max().item())
            torch.testing.assert_close(cut_gradients[name], gradient, rtol=0, atol=10 * tolerance * largest)


@pytest.mark.parametrize("length", [3, 7, 23, 24])
def test_cut_tokens_give_the_features_and_gradients_of_the_full_length(length):
    same_as_full_length(create(config()), tokens(length))


@pytest.mark.parametrize(
    "changes",
    [{"no_causal_mask": True, "custom_text": True}, {"pool_type": "last"}, {"custom_text": True}, {"proj_bias": True}],
)
def test_towers_that_cannot_be_cut_see_the_padding_again(changes):
    same_as_full_length(create(config(**changes)), tokens(7))


def test_features_have_unit_length_and_score_is_their_product():
    model = create(config())
    images, texts = model.encode_image(torch.randn(3, 3, 16, 16)), model.encode_text(tokens(5))
    torch.testing.assert_close(images.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(model.score(images, texts), images @ texts.T)


def test_initial_weights_are_decided_by_the_seed_alone():
    torch.manual_seed(1)
    one = create(config(), seed=7).state_dict()
    after_one = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after_one)  # the caller's random state is left alone
    again, other = create(config(), seed=7).state_dict(), create(config(), seed=8).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["network.visual.conv1.weight"], other["network.visual.conv1.weight"])


def test_initial_weights_are_those_of_this_version():
    """Golden: they come from the seed by way of data/draws.py, whose change would silently be another experiment."""
    first = create(catalog.resolve("tiny"), seed=7).state_dict()["network.visual.class_embedding"][:3]
    torch.testing.assert_close(first, torch.tensor([-0.2508590519, -0.1995528638, -0.0203792639]))


def test_building_does_not_change_the_configuration():
    given = config(custom_text=True)
    assert create(given).structure()["config"] == config(custom_text=True)


def test_open_clip_refusals_are_user_errors():
    with pytest.raises(UserError, match="cannot build"):
        create(config(pool_type="nonsense"))


@pytest.mark.parametrize(
    ("name", "total", "without_table", "image"),
    [
        ("emoji-96x4", 5_461_825, 718_657, 480_192),
        ("emoji-96x3", 5_349_985, 606_817, 368_352),
        ("emoji-64x3", 5_041_633, 298_465, 171_840),
    ],
)
def test_shipped_shapes_have_the_promised_sizes(name, total, without_table, image):
    sizes = count(create(catalog.resolve(name)))
    assert (sizes.total, sizes.without_token_table, sizes.image) == (total, without_table, image)


def test_counts_of_a_separate_text_tower_are_the_same():
    assert count(create(config(custom_text=True))) == count(create(config()))


def test_torchvision_imports_also_when_built_for_another_torch():
    code = (
        "from orchestrator.data.torchvision_ops import declare_missing_torchvision_operators as declare\n"
        "first, second = declare(), declare()\n"
        "assert second == (), second\n"
        "import torch, torchvision\n"
        "assert hasattr(torch.ops.torchvision, 'nms')\n"
        "assert set(first) <= {'nms', 'qnms'}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_bridge_gives_open_clip():
    assert hasattr(open_clip(), "CLIP")
