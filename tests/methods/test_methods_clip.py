"""CLIP's loss against official values and its own properties, and the method around it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from methods_ranks import loss_of_rows, tiny_batch, tiny_method
from methods_reference import open_clip, tinyclip

from orchestrator.errors import UserError
from orchestrator.methods import METHODS
from orchestrator.methods.clip.config import Clip
from orchestrator.methods.clip.loss import info_nce
from orchestrator.methods.clip.method import ClipMethod
from orchestrator.models.interface import Model
from orchestrator.training.method import Build
from orchestrator.training.types import World

STATE = {"samples": 0, "phase": "train"}


@pytest.mark.parametrize(
    ("dtype", "suffix", "rtol", "atol"), [(torch.float32, "", 1e-5, 1e-6), (torch.float64, "_f64", 1e-9, 1e-12)]
)
def test_official_value_and_gradients(dtype, suffix, rtol, atol):
    case = tinyclip("hard_scale_init")
    found = loss_of_rows(
        World(), case["student_image"], case["student_text"], case["student_logit_scale"], dtype=dtype
    )
    assert found["loss"] == pytest.approx(case[f"loss{suffix}"], rel=rtol)
    assert found["scale"] == pytest.approx(case[f"grad_student_logit_scale{suffix}"], rel=10 * rtol)
    for name in ("image", "text"):
        expected = case[f"grad_student_{name}{suffix}"]
        torch.testing.assert_close(found[name].double(), expected, rtol=rtol, atol=atol)


def test_gradients_of_one_optimiser_step_of_open_clip():
    case = open_clip("open_clip/accum_freq")
    towers = {name: case[f"in/{name}_weight"].clone().requires_grad_() for name in ("vi", "te")}
    log_scale = torch.tensor(math.log(10), dtype=torch.float64, requires_grad=True)
    image = F.normalize(case["in/images"] @ towers["vi"].T, dim=-1)
    text = F.normalize(case["in/texts"] @ towers["te"].T, dim=-1)
    info_nce(image, text, image, text, log_scale.exp(), rank=0).backward()
    torch.testing.assert_close(log_scale.grad, case["out/grad_logit_scale_accum1"], rtol=2e-3, atol=2e-3)
    for name, weight in towers.items():
        for micro_batches in (1, 2, 4):  # whose tower gradients do not depend on their number
            expected = case[f"out/grad_{name}.weight_accum{micro_batches}"]
            torch.testing.assert_close(weight.grad, expected, rtol=2e-3, atol=2e-3)


def test_order_of_the_batch_does_not_matter():
    case = tinyclip("hard_scale_init")
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    image, text = case["student_image"], case["student_text"]
    straight = loss_of_rows(World(), image, text, 14.0, dtype=torch.float64)
    shuffled = loss_of_rows(World(), image[order], text[order], 14.0, dtype=torch.float64)
    assert shuffled["loss"] == pytest.approx(straight["loss"], rel=1e-12)
    torch.testing.assert_close(shuffled["image"], straight["image"][order])


@pytest.mark.parametrize(("before", "after"), [(6.0, math.log(100)), (-1.0, 0.0), (2.5, 2.5)])
def test_scale_stays_between_1_and_100(before, after):
    method = tiny_method(World(), "clip")
    method.model.logit_scale.data.fill_(before)
    method.on_step_end(12)
    assert method.model.logit_scale.item() == pytest.approx(after)


def test_method_reports_one_term_the_scale_and_accuracy():
    method = tiny_method(World(), "clip")
    output = method.loss(method.encode(tiny_batch(World())), STATE)
    assert set(output.terms) == {"contrastive"}
    assert output.reported["logit_scale"].item() == pytest.approx(1 / 0.07)
    assert 0 <= output.reported["batch_top1"].item() <= 1
    assert method.result() is method.model


def test_training_learns_a_batch():
    method = tiny_method(World(), "clip")
    optimiser, batch = torch.optim.AdamW(method.parameters(), lr=3e-3), tiny_batch(World())
    losses = []
    for step in range(12):
        output = method.loss(method.encode(batch), STATE)
        optimiser.zero_grad()
        output.total.backward()
        optimiser.step()
        method.on_step_end(12 * step)
        losses.append(output.total.item())
    assert losses[-1] < losses[0] / 2
    assert output.reported["batch_top1"].item() > 0.9


def test_a_model_of_another_kind_is_refused():
    build = Build(model=Model(), teacher=None, total_samples=1, batch=1, world=World(), seed=0)
    with pytest.raises(UserError, match="open_clip models"):
        ClipMethod(Clip(), build)


def test_every_method_names_a_runner_that_exists():
    import importlib

    for name in METHODS:
        module, _, attribute = METHODS[name].runner.partition(":")
        assert hasattr(importlib.import_module(module), attribute)
