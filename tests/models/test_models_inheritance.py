"""Manual weight inheritance against official values, published sizes, and what must be refused."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from orchestrator.errors import UserError
from orchestrator.models import catalog
from orchestrator.models.clip import OpenClipModel
from orchestrator.models.count import count
from orchestrator.models.inheritance import inherit, layer_map
from orchestrator.models.interface import Model
from orchestrator.models.open_clip_bridge import create, open_clip

REFERENCE = Path(__file__).parent.parent / "reference" / "tinyclip"


def shape(width=16, layers=6, text_width=16, text_layers=4, head=4, patch=4, image=8, embed=12, **more) -> dict:
    vision = {"image_size": image, "patch_size": patch, "width": width, "layers": layers, "head_width": head}
    text = {
        "context_length": 8,
        "vocab_size": 50,
        "width": text_width,
        "heads": text_width // head,
        "layers": text_layers,
    }
    return {"embed_dim": embed, "vision_cfg": vision, "text_cfg": text, **more}


def published(width, layers, text_width, text_layers, patch=32, embed=512) -> dict:
    """Published TinyCLIP shapes: heads of 64 channels, images of 224 pixels, 77 tokens."""
    kind = {"layers": layers, "width": width} | ({} if isinstance(layers, list) else {"patch_size": patch})
    text = {
        "context_length": 77,
        "vocab_size": 49408,
        "width": text_width,
        "heads": text_width // 64,
        "layers": text_layers,
    }
    return {"embed_dim": embed, "vision_cfg": {"image_size": 224, **kind}, "text_cfg": text}


SOURCE = create(shape(), seed=1)


def texts() -> Tensor:
    tokens = torch.arange(1, 17).view(2, 8)
    tokens[:, -1] = 49
    return tokens


def test_official_vision_tower():
    with np.load(REFERENCE / "cases.npz") as arrays:
        name = "inherit_vision_w16l6_to_w8l3/"
        case = {key.removeprefix(name): torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith(name)}
    teacher, student = create(shape()), create(shape(width=8, layers=3, text_width=8, text_layers=2), seed=2)
    weights = {key.removeprefix("teacher."): value for key, value in case.items() if key.startswith("teacher.")}
    missing = teacher.network.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    inherit(student, teacher)
    state = student.network.state_dict()
    expected = {key.removeprefix("student."): value for key, value in case.items() if key.startswith("student.")}
    assert len(expected) == sum(key.startswith("visual.") for key in state)
    for key, value in expected.items():
        assert torch.equal(state[key], value), key
    for model, output in ((student, "student_output"), (teacher, "teacher_output")):
        if output in case:
            torch.testing.assert_close(model.network.visual(case["input"]), case[output], rtol=1e-5, atol=1e-6)


def test_official_resnet_map():
    cases = json.loads((REFERENCE / "cases.json").read_text())["cases"]
    mapping = next(case["scalars"]["map"] for case in cases if case["case"] == "inherit_resnet_map")

    def resnet(layers, width) -> dict:
        return shape() | {"embed_dim": 16, "vision_cfg": {"layers": layers, "width": width, "image_size": 32}}

    teacher, student = create(resnet([2, 3, 4, 2], 16), seed=1), create(resnet([1, 1, 2, 2], 8), seed=2)
    for module in teacher.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(generator=torch.Generator().manual_seed(len(module.weight)))
            module.num_batches_tracked.fill_(7)
    inherit(student, teacher)
    state, source = student.network.state_dict(), teacher.network.state_dict()
    assert len(mapping) > 50
    for key, entry in mapping.items():
        block = source[entry["source"]][tuple(slice(n) for n in entry["student_shape"])]
        assert list(state[key].shape) == entry["student_shape"]
        assert torch.equal(state[key], block), key
    assert student.encode_image(torch.randn(2, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize(
    ("source", "student", "layers"),
    [
        (12, 6, [0, 2, 4, 6, 8, 10]),
        (12, 3, [0, 4, 8]),
        (12, 9, list(range(9))),
        (12, 10, list(range(10))),
        (9, 6, list(range(6))),
        (4, 3, [0, 1, 2]),
        (2, 1, [0]),
        (5, 5, [0, 1, 2, 3, 4]),
    ],
)
def test_layers_are_every_step_th_from_the_front(source, student, layers):
    assert layer_map(source, student) == layers


def test_equal_shapes_give_bit_identical_outputs():
    student = inherit(create(shape(), seed=2), SOURCE)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(student.encode_image(images), SOURCE.encode_image(images))
    assert torch.equal(student.encode_text(texts()), SOURCE.encode_text(texts()))


def test_a_whole_copy_takes_the_scale_a_cut_does_not():
    source = create(shape(), seed=1)
    source.logit_scale.data.fill_(4.0)
    assert inherit(create(shape(), seed=2), source).logit_scale.item() == 4.0
    student = inherit(create(shape(layers=3), seed=2), source)
    assert student.logit_scale.item() == create(shape()).logit_scale.item()


def test_attention_is_cut_by_whole_heads_of_q_k_and_v():
    student = inherit(create(shape(width=8, text_width=12), seed=2), SOURCE)
    for tower, width in (("visual.", 8), ("", 12)):
        name = f"{tower}transformer.resblocks.1.attn.in_proj_weight"
        q, k, v = student.network.state_dict()[name].chunk(3)
        for mine, theirs in zip((q, k, v), SOURCE.network.state_dict()[name].chunk(3), strict=True):
            assert torch.equal(mine, theirs[:width, :width])


def test_every_tensor_of_the_student_comes_from_the_source():
    student = create(shape(width=8, layers=2, text_width=8, text_layers=1, embed=6), seed=2)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(float("nan"))
    student.logit_scale.data.fill_(1.0)
    inherit(student, SOURCE)
    assert all(value.isfinite().all() for value in student.state_dict().values())


def test_the_source_is_left_unchanged_and_shares_no_memory():
    before = copy.deepcopy(SOURCE.state_dict())
    for student in (create(shape(), seed=2), create(shape(width=8), seed=2)):
        inherit(student, SOURCE)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(1)
    assert all(torch.equal(before[name], value) for name, value in SOURCE.state_dict().items())


def test_chains_through_the_shipped_shapes():
    teacher, mid, small = (
        create(catalog.resolve(f"emoji-{name}"), seed=n) for n, name in enumerate(("96x4", "96x3", "64x3"))
    )
    inherit(small, inherit(mid, teacher))
    theirs, mine = teacher.network.state_dict(), small.network.state_dict()
    assert torch.equal(mine["visual.conv1.weight"], theirs["visual.conv1.weight"][:64])
    assert torch.equal(mine["token_embedding.weight"], theirs["token_embedding.weight"])
    name = "visual.transformer.resblocks.2.mlp.c_fc.weight"
    assert torch.equal(mine[name], theirs[name][:256, :64])


@pytest.mark.parametrize(
    ("student", "expected"),
    [
        (shape(layers=7), "7 layers cannot inherit from a source of 6"),
        (shape(text_layers=5), "5 layers cannot inherit from a source of 4"),
        (shape(width=20), "at least as large"),
        (shape(text_width=20), "at least as large"),
        (shape(embed=16), "at least as large"),
        (shape(patch=2), r"patch size \(2, 2\)"),
        (shape(image=16), "image size"),
        (shape(head=8), "image head size 8"),
        (shape() | {"text_cfg": shape()["text_cfg"] | {"vocab_size": 60}}, "vocabulary 60"),
        (shape() | {"text_cfg": shape()["text_cfg"] | {"context_length": 9}}, "at least as large"),
        (shape() | {"text_cfg": shape()["text_cfg"] | {"ls_init_value": 0.1}}, "has no 'transformer.resblocks.0.ls_1"),
        (shape() | {"vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}}, "image tower ResNet"),
        (shape(custom_text=True), "own ViT, ResNet and text towers"),
        (shape() | {"vision_cfg": shape()["vision_cfg"] | {"qk_norm": True}}, "custom attention"),
    ],
)
def test_what_has_no_meaning_is_refused_and_leaves_the_student_alone(student, expected):
    student = create(student, seed=2)
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(UserError, match=expected):
        inherit(student, SOURCE)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_other_kinds_of_models_and_modes_are_refused():
    with pytest.raises(UserError, match="open_clip models only"):
        inherit(Model(), SOURCE)
    with pytest.raises(UserError, match="unknown inheritance mode"):
        inherit(create(shape()), SOURCE, mode="auto")


def test_another_activation_is_warned_of_and_the_same_is_not():
    with pytest.warns(UserWarning, match="QuickGELU and will run with GELU"):
        inherit(create(shape()), create(shape(quick_gelu=True)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inherit(create(shape(quick_gelu=True)), create(shape(quick_gelu=True)))


@pytest.mark.parametrize(
    ("config", "total"),
    [
        (published(768, 12, 512, 12), 151_277_313),
        (published(640, 12, 512, 9), 115_382_145),
        (published(512, 12, 512, 6), 84_205_569),
        (published(512, 12, 512, 6, patch=16), 83_101_185),
        (published(256, 10, 256, 3, patch=16), 23_446_017),
        (published(64, [3, 4, 6, 3], 512, 12, embed=1024), 102_007_137),
        (published(56, [3, 4, 6, 3], 512, 9, embed=1024), 83_816_869),
        (published(44, [3, 4, 6, 3], 512, 6, embed=1024), 63_372_703),
    ],
)
def test_published_shapes_have_their_published_sizes(config, total):
    package = open_clip()
    with torch.device("meta"):
        model = OpenClipModel(package.CLIP(**config), config)
    assert count(model).total == total
