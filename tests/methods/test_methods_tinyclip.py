"""Affinity mimicking against official values and its own properties, and the method's teacher and scale."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from methods_ranks import features_of, loss_of_rows, tiny_batch, tiny_method
from methods_reference import tinyclip
from pydantic import ValidationError

from orchestrator.data.captions import CaptionPolicy
from orchestrator.data.embeddings import About, StoredViews
from orchestrator.data.preprocess import Preprocess, Tokenizer
from orchestrator.data.transforms import Augment
from orchestrator.errors import UserError
from orchestrator.methods.tinyclip import method as module
from orchestrator.methods.tinyclip.config import TinyCLIP
from orchestrator.methods.tinyclip.method import TinyClipMethod
from orchestrator.models import catalog
from orchestrator.models.open_clip_bridge import create
from orchestrator.training.flops import step_flops
from orchestrator.training.method import Build
from orchestrator.training.types import World

STATE = {"samples": 0, "phase": "train"}
CASES = ["soft_basic", "soft_teacher_dim_differs", "soft_b32_d64", "combo_alpha1_weight1"]


def soft(case: dict, dtype: torch.dtype = torch.float64, **changed) -> dict:
    case = case | changed
    return loss_of_rows(
        World(),
        case["student_image"],
        case["student_text"],
        case["student_logit_scale"],
        (case["teacher_image"], case["teacher_text"], case["teacher_logit_scale"]),
        dtype,
    )


@pytest.mark.parametrize(
    ("dtype", "suffix", "rtol", "atol"), [(torch.float32, "", 1e-5, 5e-6), (torch.float64, "_f64", 1e-9, 1e-11)]
)
@pytest.mark.parametrize("name", CASES)
def test_official_value_and_gradients(name, dtype, suffix, rtol, atol):
    case = tinyclip(name)
    found = soft(case, dtype)
    assert found["loss"] == pytest.approx(case[f"total{suffix}"], rel=rtol)
    if f"img2text{suffix}" in case:
        assert found["img2text"] == pytest.approx(case[f"img2text{suffix}"], rel=rtol, abs=1e-6)
        assert found["text2img"] == pytest.approx(case[f"text2img{suffix}"], rel=rtol, abs=1e-6)
    if f"grad_student_logit_scale{suffix}" in case:
        assert found["scale"] == pytest.approx(case[f"grad_student_logit_scale{suffix}"], rel=rtol, abs=atol)
    for tower in ("image", "text"):
        expected = case[f"grad_student_{tower}{suffix}"]
        torch.testing.assert_close(found[tower].double(), expected, rtol=rtol, atol=atol)
    assert not found["teacher_has_gradient"]


def test_a_batch_of_one_has_no_loss():
    case = {
        key: value[:1] if isinstance(value, torch.Tensor) else value for key, value in tinyclip("soft_basic").items()
    }
    found = soft(case)
    assert found["loss"] == 0
    assert not found["image"].any()


def test_the_teacher_itself_has_its_entropy_as_loss_and_no_gradient():
    case = tinyclip("soft_basic")
    found = soft(case, torch.float32, student_image=case["teacher_image"], student_text=case["teacher_text"])
    logits = 50 * case["teacher_image"] @ case["teacher_text"].T
    entropy = sum(torch.distributions.Categorical(logits=side).entropy().mean() for side in (logits, logits.T)) / 2
    assert found["loss"] == pytest.approx(entropy.item(), rel=1e-4)
    assert abs(found["kl"]) < 1e-6
    assert max(found["image"].abs().max(), found["text"].abs().max()) < 1e-6


def test_scales_of_student_and_teacher_are_separate():
    case = tinyclip("soft_basic")
    losses = {
        (s, t): soft(case, student_logit_scale=s, teacher_logit_scale=t)["loss"]
        for s in (14.0, 100.0)
        for t in (14.0, 100.0)
    }
    assert len({round(loss, 6) for loss in losses.values()}) == 4


def test_kl_is_the_loss_less_the_teachers_entropy():
    case = tinyclip("soft_b32_d64")
    own = soft(case, student_image=case["teacher_image"], student_text=case["teacher_text"])
    assert soft(case)["kl"] == pytest.approx(soft(case)["loss"] - own["loss"], rel=1e-9)


def test_alpha_1_never_evaluates_the_contrastive_loss(monkeypatch):
    def refuse(*args):
        raise AssertionError("contrastive loss evaluated")

    monkeypatch.setattr(module, "info_nce", refuse)
    method = tiny_method(World(), "tinyclip")
    assert set(method.loss(features_of(method, tiny_batch(World())), STATE).terms) == {"distill"}
    mixed = tiny_method(World(), "tinyclip", alpha=0.5)
    with pytest.raises(AssertionError, match="evaluated"):
        mixed.loss(features_of(mixed, tiny_batch(World())), STATE)


@pytest.mark.parametrize(("alpha", "weight"), [(0.5, 2.0), (0.0, 1.0), (1.0, 3.0)])
def test_terms_are_weighted(alpha, weight):
    method = tiny_method(World(), "tinyclip", alpha=alpha, distill_weight=weight)
    features = features_of(method, tiny_batch(World()))
    found = method.loss(features, STATE)
    rows = {"image": features["image"].detach(), "text": features["text"].detach(), "scale": 50.0}
    teacher = (features["teacher_image"], features["teacher_text"], 50.0)
    distill = loss_of_rows(World(), **rows, teacher=teacher, dtype=torch.float64)["loss"]
    hard = loss_of_rows(World(), **rows, dtype=torch.float64)["loss"]
    assert found.total.item() == pytest.approx(weight * (alpha * distill + (1 - alpha) * hard), rel=1e-9)


def test_scale_is_50_at_the_first_forward_and_after_every_step():
    method = tiny_method(World(), "tinyclip")
    trained = [parameter for group in method.groups(method.phases(12)[0]) for _, parameter in group.parameters]
    assert all(parameter is not method.model.logit_scale for parameter in trained)
    optimiser = torch.optim.AdamW(trained, lr=0.1)
    for step in range(3):
        assert method.model.logit_scale.exp().item() == pytest.approx(50)
        output = method.loss(features_of(method, tiny_batch(World())), STATE)
        assert output.reported["logit_scale"].item() == 50
        optimiser.zero_grad()
        output.total.backward()
        optimiser.step()
        method.on_step_end(12 * step)
    assert method.model.logit_scale.exp().item() == pytest.approx(50)


def test_without_a_fixed_scale_each_model_has_its_own_and_the_student_learns():
    method = tiny_method(World(), "tinyclip", scale=None)
    method.teacher.logit_scale.data.fill_(math.log(80))
    features = features_of(method, tiny_batch(World()))
    output = method.loss(features, STATE)
    rows = {"image": features["image"].detach(), "text": features["text"].detach()}
    teacher = (features["teacher_image"], features["teacher_text"], 80.0)
    scale = method.model.logit_scale.exp().item()
    expected = loss_of_rows(World(), **rows, scale=scale, teacher=teacher, dtype=torch.float64)["loss"]
    assert output.total.item() == pytest.approx(expected, rel=1e-6)
    output.total.backward()
    assert method.model.logit_scale.grad is not None
    method.model.logit_scale.data.fill_(9.0)
    method.on_step_end(12)
    assert method.model.logit_scale.exp().item() == pytest.approx(100)


def test_teacher_is_frozen_in_eval_mode_and_no_part_of_the_method():
    method = tiny_method(World(), "tinyclip").train()
    before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    method.loss(features_of(method, tiny_batch(World())), STATE).total.backward()
    assert not method.teacher.training
    assert all(not p.requires_grad and p.grad is None for p in method.teacher.parameters())
    assert not any("teacher" in name for name in method.state_dict())
    assert all(torch.equal(before[name], value) for name, value in method.teacher.state_dict().items())


def test_distillation_approaches_the_teacher():
    method, batch = tiny_method(World(), "tinyclip"), tiny_batch(World())
    optimiser = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=3e-3)
    divergences = []
    for _ in range(15):
        output = method.loss(features_of(method, batch), STATE)
        optimiser.zero_grad()
        output.total.backward()
        optimiser.step()
        divergences.append(output.reported["kl"].item())
    assert 0 <= divergences[-1] < divergences[0] / 3


def build(**changes) -> Build:
    inputs = {"preprocess": Preprocess(32), "tokenizer": Tokenizer(context_length=24)}
    student, teacher = (create(catalog.resolve("tiny"), seed) for seed in (1, 2))
    given = Build(
        student, teacher, 1, 1, World(), 0, **inputs, teacher_preprocess=Preprocess(32), teacher_tokenizer=Tokenizer()
    )
    return replace(given, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": None}, "needs a teacher"),
        ({"teacher_preprocess": Preprocess(224)}, "different images"),
        ({"teacher_preprocess": Preprocess(32, mean=(0.5, 0.5, 0.5))}, "different images"),
        ({"teacher_tokenizer": Tokenizer(context_length=12)}, "student's tokens"),
    ],
)
def test_a_teacher_that_cannot_see_the_students_batch_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        TinyClipMethod(TinyCLIP(), build(**changes))


def stored(scale: float | None) -> StoredViews:
    """Embeddings of no samples: features come with the batch."""
    about = About("m", "d", None, 1, 0, Augment(), CaptionPolicy(), Preprocess(32), Tokenizer(), scale)
    return StoredViews(about, np.empty((0, 16), np.uint8), {})


def test_stored_features_stand_for_the_teachers():
    online = tiny_method(World(), "tinyclip", scale=None)
    online.teacher.logit_scale.data.fill_(math.log(80))
    batch = tiny_batch(World())
    targets = online.targets(batch)
    cached = TinyClipMethod(
        TinyCLIP(scale=None), Build(deepcopy(online.model), None, 12, 12, World(), 0, stored=stored(80.0))
    )
    assert cached.teacher is None
    known = replace(batch, embeddings={"image": targets["teacher_image"], "text": targets["teacher_text"]})
    losses = [method.loss(features_of(method, known), STATE).total.item() for method in (online, cached)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)


def test_stored_features_of_a_model_without_a_scale_need_a_fixed_one():
    given = build(teacher=None, stored=stored(None), teacher_tokenizer=Tokenizer())
    assert TinyClipMethod(TinyCLIP(), given).teacher is None
    with pytest.raises(UserError, match="no scale of its own"):
        TinyClipMethod(TinyCLIP(scale=None), given)


def test_a_teacher_that_runs_beside_is_counted_as_arithmetic():
    method, batch = tiny_method(World(), "tinyclip"), tiny_batch(World())
    alone = step_flops(method.model, batch)
    assert method.flops(batch) == alone + step_flops(method.teacher, batch)


def test_a_teacher_of_longer_context_is_accepted():
    assert TinyClipMethod(TinyCLIP(), build()).teacher is not None


@pytest.mark.parametrize("options", [{"alpha": 1.5}, {"alpha": -0.1}, {"scale": 0}, {"distill_weight": 0}])
def test_senseless_options_are_refused(options):
    with pytest.raises(ValidationError):
        TinyCLIP(**options)
