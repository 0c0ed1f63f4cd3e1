"""Patch dropout, recomputation, compilation, locked towers, distances from the output: what a training may ask for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from orchestrator.errors import UserError
from orchestrator.models import lengths
from orchestrator.models.block import PatchDropout
from orchestrator.models.clip import OpenClipModel
from orchestrator.models.compute import compile_blocks, recompute_activations, set_patch_dropout, use_channels_last
from orchestrator.models.depth import depths
from orchestrator.models.locked import lock
from orchestrator.models.open_clip_bridge import create, open_clip

TEXT = {"context_length": 24, "vocab_size": 200, "width": 32, "heads": 2, "layers": 3}
VISION = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 3, "head_width": 16}
RESNET = {"image_size": 32, "width": 8, "layers": [1, 1, 1, 1]}
TIMM = {"timm_model_name": "vit_tiny_patch16_224", "image_size": 224, "timm_pool": ""}


def model(vision: dict | None = None, **extra) -> OpenClipModel:
    return create({"embed_dim": 16, "vision_cfg": vision or VISION, "text_cfg": TEXT, **extra}, seed=3)


def batch(rows: int = 6) -> tuple[Tensor, Tensor]:
    """Images, and captions of 3 to 20 tokens."""
    generator = torch.Generator().manual_seed(rows)
    tokens = torch.zeros(rows, 20, dtype=torch.int64)
    for number, row in enumerate(tokens):
        size = 3 + 17 * number // max(1, rows - 1)
        row[:size] = torch.randint(1, 190, (size,), generator=generator)
        row[size - 1] = 199
    return torch.randn(rows, 3, 32, 32, generator=generator), tokens


def gradients(clip: OpenClipModel, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """Of a scalar of all features, by name; parameters without gradient are not in it."""
    clip.zero_grad()
    torch.manual_seed(5)
    images = nn.functional.interpolate(images, size=clip.config["vision_cfg"]["image_size"])
    features = torch.cat([clip.encode_image(images), clip.encode_text(tokens)])
    (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
    return {name: p.grad.clone() for name, p in clip.named_parameters() if p.grad is not None}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.fixture
def many_groups(monkeypatch):
    monkeypatch.setattr(lengths, "price", lambda width, gpu: 3.0)


class TestPatchDropout:
    def test_draws_are_open_clips(self):
        ours, theirs = PatchDropout(0.6), open_clip().transformer.PatchDropout(0.6)
        x = torch.randn(5, 17, 4)
        torch.manual_seed(1)
        expected = theirs(x)
        torch.manual_seed(1)
        assert torch.equal(ours(x), expected)

    @pytest.mark.parametrize(("share", "kept"), [(0.5, 8), (0.75, 4), (0.99, 1)])
    def test_keeps_the_class_token_and_a_share_of_the_patches_in_training_alone(self, share, kept):
        x = torch.arange(17.0).expand(3, 17)[:, :, None]
        dropout = PatchDropout(share)
        chosen = dropout(x)[:, :, 0]
        assert (chosen[:, 0] == 0).all()
        assert all(len(set(row.tolist())) == kept + 1 for row in chosen)
        assert torch.equal(dropout.eval()(x), x)

    def test_can_be_set_and_unset_and_is_no_part_of_the_structure(self):
        plain, changed = model(), model()
        set_patch_dropout(changed, 0.5)
        assert changed.structure() == plain.structure()
        assert changed.state_dict().keys() == plain.state_dict().keys()
        images, _ = batch()
        assert not torch.equal(changed.encode_image(images), plain.encode_image(images))
        assert torch.equal(changed.eval().encode_image(images), plain.eval().encode_image(images))
        set_patch_dropout(changed, 0.0)
        assert torch.equal(changed.train().encode_image(images), plain.train().encode_image(images))

    def test_the_models_own_is_kept(self):
        own = model(VISION | {"patch_dropout": 0.5})
        assert isinstance(own.network.visual.patch_dropout, PatchDropout)
        assert own.structure()["config"]["vision_cfg"]["patch_dropout"] == 0.5

    @pytest.mark.parametrize("vision", [RESNET, TIMM])
    def test_other_towers_are_refused(self, vision):
        with pytest.raises(UserError, match="vision transformer"):
            set_patch_dropout(model(vision), 0.5)


class TestRecomputation:
    @pytest.mark.parametrize("vision", [VISION, VISION | {"patch_dropout": 0.5}, VISION | {"pool_type": "avg"}, TIMM])
    def test_gradients_are_the_same(self, vision, many_groups):
        clip = model(vision)
        expected = gradients(clip, *batch())
        recompute_activations(clip)
        assert_equal(gradients(clip, *batch()), expected)

    def test_fewer_activations_are_kept(self):
        clip, (images, _) = model(VISION | {"layers": 6}), batch()
        kept = []
        for change in (lambda _: None, recompute_activations):
            change(clip)
            with torch.autograd.graph.saved_tensors_hooks(lambda t: kept[-1].append(t.numel()) or t, lambda t: t):
                kept.append([])
                clip.encode_image(images)
        assert sum(kept[1]) < sum(kept[0]) / 2

    def test_a_resnet_is_refused(self):
        with pytest.raises(UserError, match="ResNet"):
            recompute_activations(model(RESNET))


class TestCompilation:
    @pytest.mark.parametrize("vision", [VISION, RESNET])
    def test_nothing_changes_but_the_speed(self, vision, many_groups):
        clip = model(vision)
        reference = copy.deepcopy(clip)
        compile_blocks(clip, backend="eager")
        assert clip.state_dict().keys() == reference.state_dict().keys()
        for rows in (6, 4):
            assert_equal(gradients(clip, *batch(rows)), gradients(reference, *batch(rows)))


class TestLocks:
    @pytest.mark.parametrize("custom_text", [False, True])
    @pytest.mark.parametrize("unlocked", [0, 1, 2, 4])
    def test_layers_are_open_clips(self, unlocked, custom_text):
        extra = {"custom_text": True} if custom_text else {}
        ours, theirs = model(**extra), model(**extra)
        lock(ours, image=True, image_unlocked=unlocked, text=True, text_unlocked=unlocked)
        theirs.network.lock_image_tower(unlocked)
        theirs.network.lock_text_tower(unlocked)
        expected = {name: p.requires_grad for name, p in theirs.named_parameters()}
        assert {name: p.requires_grad for name, p in ours.named_parameters()} == expected

    def test_only_what_is_unlocked_has_a_gradient(self, many_groups):
        clip = model()
        expected = gradients(clip, *batch())
        lock(clip, image=True, text=True, text_unlocked=2)
        found = gradients(clip, *batch())
        assert {name.removeprefix("network.").split(".")[0] for name in found} == {
            "transformer", "ln_final", "text_projection",
        }  # fmt: skip
        assert all(".resblocks.2." in name for name in found if "resblocks" in name)
        assert_equal(found, {name: expected[name] for name in found})

    def test_frozen_batch_norms_keep_their_statistics_in_training(self):
        clip = model(RESNET)
        lock(clip, image=True, image_unlocked=2)
        clip.eval().train()
        before = copy.deepcopy(clip.state_dict())
        clip.encode_image(batch()[0])
        changed = {name for name, value in clip.state_dict().items() if not torch.equal(value, before[name])}
        assert changed
        assert all("layer4" in name for name in changed)

    def test_a_timm_tower_is_locked_by_its_own_layers(self):
        clip = model(TIMM)
        lock(clip, image=True, image_unlocked=2)
        trained = {n.removeprefix("network.visual.") for n, p in clip.named_parameters() if p.requires_grad}
        trained = {name for name in trained if name.startswith(("trunk", "head"))}
        assert trained
        assert all(name.startswith(("trunk.blocks.11.", "trunk.norm.", "head.")) for name in trained)

    def test_too_many_unlocked_layers_are_refused(self):
        with pytest.raises(UserError, match="image_unlocked is 5, and the image tower has 5 layers"):
            lock(model(), image=True, image_unlocked=5)


class TestDepths:
    def test_embeddings_are_deepest_and_projections_at_the_output(self):
        clip = model()
        found = {name.removeprefix("network."): depth for name, depth in depths(clip).items()}
        assert found.keys() == {name for name, _ in clip.network.named_parameters()}
        expected = {
            "logit_scale": 0,
            "visual.proj": 0,
            "visual.ln_post.weight": 1,
            "visual.transformer.resblocks.2.ln_1.weight": 1,
            "visual.transformer.resblocks.0.attn.in_proj_weight": 3,
            "visual.conv1.weight": 4,
            "visual.positional_embedding": 4,
            "text_projection": 0,
            "ln_final.bias": 1,
            "transformer.resblocks.1.mlp.c_fc.weight": 2,
            "token_embedding.weight": 4,
            "positional_embedding": 4,
        }
        assert {name: found[name] for name in expected} == expected

    @pytest.mark.parametrize("vision", [RESNET, TIMM])
    def test_other_towers_have_layers_too(self, vision):
        clip = model(vision)
        found = depths(clip)
        assert found.keys() == {name for name, _ in clip.named_parameters()}
        image = [depth for name, depth in found.items() if ".visual." in name]
        assert sorted(set(image)) == list(range(max(image) + 1))


def test_channels_last_changes_no_value_and_leaves_transformers_alone():
    clip, images = model(RESNET).eval(), batch()[0]
    expected = clip.encode_image(images)
    use_channels_last(clip)
    assert clip.network.visual.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(clip.encode_image(images), expected, rtol=1e-4, atol=1e-5)
    transformer = model()
    use_channels_last(transformer)
    assert transformer.network.visual.conv1.weight.is_contiguous()


def test_models_of_unknown_structure_are_told_so():
    from orchestrator.models.interface import Model

    class Other(Model):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

    for ask in (depths, lambda m: lock(m, image=True)):
        with pytest.raises(UserError, match="layers of a Other"):
            ask(Other())
