"""Counted arithmetic equals PyTorch's own count of the same call; the split of texts by length is the cheapest."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from orchestrator.models import lengths
from orchestrator.models.flops import CPU_ATTENTION, forward_flops, peak_flops
from orchestrator.models.interface import Model
from orchestrator.models.lengths import split
from orchestrator.models.open_clip_bridge import create

TEXT = {"context_length": 48, "vocab_size": 300, "width": 64, "heads": 2, "layers": 3}
VISION = {"image_size": 56, "patch_size": 8, "width": 64, "layers": 3, "head_width": 32}
SHAPES = {
    "plain": {},
    "patch dropout": {"vision_cfg": VISION | {"patch_dropout": 0.5}},
    "average pooling": {"vision_cfg": VISION | {"pool_type": "avg"}},
    "one layer": {"text_cfg": TEXT | {"layers": 1}, "vision_cfg": VISION | {"layers": 1, "mlp_ratio": 2.0}},
    "ResNet": {"vision_cfg": {"image_size": 32, "width": 8, "layers": [1, 1, 1, 1]}},
    "separate text tower": {"custom_text": True, "text_cfg": TEXT | {"proj_bias": True}},
    "bidirectional": {"custom_text": True, "text_cfg": TEXT | {"no_causal_mask": True, "pool_type": "last"}},
    "experimental blocks": {"text_cfg": TEXT | {"qk_norm": True}},
}


@pytest.mark.parametrize("price", [3.0, 1e9])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_count_is_pytorchs(shape, price, monkeypatch):
    monkeypatch.setattr(lengths, "price", lambda width, gpu: price)
    model = create({"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT} | SHAPES[shape])
    side = model.config["vision_cfg"]["image_size"]
    tokens = torch.zeros(6, 48, dtype=torch.int64)
    for row, size in enumerate((3, 4, 4, 40, 9, 10)):
        tokens[row, size - 1] = 299
    for image, images in ((True, 5), (False, 0)):
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            model.encode_image(torch.randn(images, 3, side, side)) if image else model.encode_text(tokens)
        counted = forward_flops(model, images=5)[0] if image else forward_flops(model, tokens=tokens)[1]
        assert counted == pytest.approx(counter.get_total_flops(), rel=1e-2)
    assert model.training


def test_models_that_are_not_open_clips_count_nothing():
    assert forward_flops(Model(), images=3, tokens=torch.ones(2, 3)) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("device", "precision", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H200", "tf32", 494),
        ("NVIDIA A100-SXM4-80GB", "fp16", 312),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40S", "bf16", 362),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("Tesla V100-PCIE-32GB", "fp16", 112),
        ("Tesla V100-SXM2-16GB", "bf16", None),
        ("NVIDIA GeForce RTX 4090", "fp32", 82.6),
        ("cpu", "fp32", None),
    ],
)
def test_peaks_are_found_by_the_devices_name(device, precision, tera):
    assert peak_flops(device, precision) == (None if tera is None else pytest.approx(tera * 1e12))


def cost(groups: list[tuple[int, int]], price: float) -> float:
    return sum(rows * longest + price for rows, longest in groups)


@pytest.mark.parametrize("seed", range(20))
def test_no_other_split_is_cheaper(seed):
    draw = random.Random(seed)
    sizes = sorted(draw.choices(range(3, 20), k=9))
    price = draw.choice([0.5, 5.0, 40.0])
    cuts = itertools.chain.from_iterable(itertools.combinations(range(1, 9), n) for n in range(9))
    possible = [[(b - a, sizes[b - 1]) for a, b in itertools.pairwise((0, *cut, 9))] for cut in cuts]
    found = split(draw.sample(sizes, 9), price)
    assert sum(rows for rows, _ in found) == 9
    assert cost(found, price) == pytest.approx(min(cost(groups, price) for groups in possible))


def test_equal_lengths_stay_together():
    assert split([7] * 50, 0.0) == [(50, 7)]
