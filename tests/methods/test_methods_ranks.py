"""Distributed losses: official values at several ranks, and gradients that equal the full batch's."""

from __future__ import annotations

import pytest
import torch
from methods_ranks import loss_of_rows, on_ranks, step_gradients
from methods_reference import open_clip, tinyclip
from torch import Tensor

from orchestrator.training.gather import gather
from orchestrator.training.types import World

METHODS = {
    "clip": ("clip", {}),
    "tinyclip": ("tinyclip", {}),
    "tinyclip-hard": ("tinyclip", {"alpha": 0.0}),
    "tinyclip-own-scales": ("tinyclip", {"scale": None, "alpha": 0.5, "distill_weight": 2.0}),
}
WAYS = {
    "at-once": {},
    "cached": {"micro_batch": 3},
    "tiled": {"max_pairs": 24},
    "cached-and-tiled": {"micro_batch": 2, "max_pairs": 36},
}
"""How a step may be computed: in micro-batches, and with some rows of the loss at a time."""
ROWS = 12


def student(case: str) -> dict:
    values = tinyclip(case)
    return {"image": values["student_image"], "text": values["student_text"], "scale": values["student_logit_scale"]}


def with_teacher(case: str) -> dict:
    values = tinyclip(case)
    teacher = (values["teacher_image"], values["teacher_text"], values["teacher_logit_scale"])
    return student(case) | {"teacher": teacher}


def two_ranks(case: str) -> dict:
    values = open_clip(f"open_clip/ClipLoss_2ranks/{case}")
    return {"image": values["in/image_features"].flatten(0, 1), "text": values["in/text_features"].flatten(0, 1)}


def full_batch(teacher: bool) -> dict:
    """Twelve pairs in double precision, for 1, 2, 3 or 4 ranks."""
    generator = torch.Generator().manual_seed(3)
    image, text, *others = torch.randn(4, ROWS, 8, generator=generator, dtype=torch.float64)
    given = {"image": image / image.norm(dim=1, keepdim=True), "text": text, "scale": 3.0, "dtype": torch.float64}
    return given | ({"teacher": (*others, 2.0)} if teacher else {})


def rows(results: list[dict], name: str) -> Tensor:
    return torch.cat([result[name] for result in results]).double()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """All results by number of ranks and job name."""
    jobs = {
        f"{name} {way}": ("step_gradients", {"name": method, "options": options} | how)
        for name, (method, options) in METHODS.items()
        for way, how in WAYS.items()
    }
    soft, hard = with_teacher("soft_world4_gwg1_local1"), student("hard_world4_gwg1_local1")
    own = {
        2: {
            "open_clip": ("loss_of_rows", two_ranks("local_1_gathergrad_1") | {"scale": 10.0}),
            "without_gradient": ("loss_of_rows", student("hard_world2_gwg0_local1")),
        }
        | jobs,
        3: dict(jobs),
        4: {"soft": ("loss_of_rows", soft), "hard": ("loss_of_rows", hard)},
    }
    for some in own.values():
        some |= {f"full_batch_{teacher}": ("loss_of_rows", full_batch(teacher)) for teacher in (False, True)}
    return {size: on_ranks(size, own[size], tmp_path_factory.mktemp("ranks")) for size in own}


@pytest.mark.parametrize(("job", "case"), [("soft", "soft_world4_gwg1_local1"), ("hard", "hard_world4_gwg1_local1")])
def test_each_rank_has_the_official_loss_and_gradients(ranks, job, case):
    expected, found = tinyclip(case), ranks[4][job]
    losses = torch.tensor([result["loss"] for result in found])
    torch.testing.assert_close(losses, torch.tensor(expected["per_rank_loss"]), rtol=1e-5, atol=1e-6)
    scales = torch.tensor([result["scale"] for result in found])
    torch.testing.assert_close(
        scales, torch.tensor(expected["per_rank_grad_student_logit_scale"]), rtol=1e-5, atol=5e-6
    )
    for name in ("image", "text"):
        torch.testing.assert_close(rows(found, name), expected[f"grad_student_{name}"], rtol=1e-5, atol=5e-6)
    if job == "soft":
        for name in ("img2text", "text2img"):
            assert [result[name] for result in found] == pytest.approx(expected[f"per_rank_{name}"], rel=1e-5)


@pytest.mark.parametrize("job", ["soft", "hard"])
def test_mean_over_ranks_is_the_full_batch(ranks, job):
    expected, found = tinyclip("fullbatch_world4"), ranks[4][job]
    total = expected["soft_total" if job == "soft" else "hard_loss"]
    assert sum(result["loss"] for result in found) / 4 == pytest.approx(total, rel=1e-5)
    for name in ("image", "text"):
        torch.testing.assert_close(rows(found, name) / 4, expected[f"{job}_grad_student_{name}"], rtol=1e-5, atol=5e-6)
    assert sum(result["scale"] for result in found) / 4 == pytest.approx(expected[f"{job}_grad_scale"], rel=1e-4)


def test_open_clip_two_rank_cases(ranks):
    found = ranks[2]["open_clip"]
    same = open_clip("open_clip/ClipLoss_2ranks/local_1_gathergrad_1")
    whole = open_clip("open_clip/ClipLoss_2ranks/local_0_gathergrad_1")
    default = open_clip("open_clip/ClipLoss_2ranks/local_0_gathergrad_0")
    tolerance = {"rtol": 1e-4, "atol": 1e-5}
    losses = torch.tensor([result["loss"] for result in found], dtype=torch.float64)
    torch.testing.assert_close(losses, same["out/loss"], **tolerance)
    torch.testing.assert_close(losses.mean(), whole["out/loss"][0], **tolerance)
    for name in ("image", "text"):
        gradient = rows(found, name)
        torch.testing.assert_close(gradient, same[f"grad/{name}_features"].flatten(0, 1), **tolerance)
        torch.testing.assert_close(gradient, whole[f"grad/{name}_features"].flatten(0, 1), **tolerance)
        torch.testing.assert_close(gradient / 2, default[f"grad/{name}_features"].flatten(0, 1), **tolerance)


def test_a_gather_without_gradient_is_not_what_we_do(ranks):
    wrong = tinyclip("hard_world2_gwg0_local1")
    found = ranks[2]["without_gradient"]
    assert [result["loss"] for result in found] == pytest.approx(wrong["per_rank_loss"], rel=1e-5)
    ratio = wrong["grad_student_image"].norm() / rows(found, "image").norm()
    assert ratio < 0.9


def test_the_official_default_divides_the_gradient_by_the_ranks(ranks):
    default, found = tinyclip("hard_world4_gwg0_local0"), ranks[4]["hard"]
    torch.testing.assert_close(rows(found, "image") / 4, default["grad_student_image"], rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("teacher", [False, True])
def test_any_number_of_ranks_gives_the_gradient_of_the_full_batch(ranks, teacher, size):
    alone, found = loss_of_rows(World(), **full_batch(teacher)), ranks[size][f"full_batch_{teacher}"]
    assert sum(result["loss"] for result in found) / size == pytest.approx(alone["loss"], rel=1e-12)
    for name in ("image", "text"):
        torch.testing.assert_close(rows(found, name) / size, alone[name], rtol=1e-9, atol=1e-13)
    assert sum(result["scale"] for result in found) / size == pytest.approx(alone["scale"], rel=1e-9)


@pytest.fixture(scope="module")
def alone():
    """One process on the whole batch, at once."""
    return {name: step_gradients(World(), method, options) for name, (method, options) in METHODS.items()}


def assert_same_step(alone: dict, loss: float, gradients: dict[str, Tensor]) -> None:
    assert loss == pytest.approx(alone["loss"], rel=1e-9)
    assert gradients.keys() == alone["gradients"].keys()
    for key, gradient in alone["gradients"].items():
        torch.testing.assert_close(gradients[key], gradient, rtol=1e-7, atol=1e-10, msg=key)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", METHODS)
def test_ranks_train_what_one_process_trains(ranks, alone, name, way, size):
    found = ranks[size][f"{name} {way}"]
    for result in found:
        assert_same_step(alone[name], sum(result["loss"] for result in found) / size, result["gradients"])


@pytest.mark.parametrize("way", list(WAYS)[1:])
@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_the_same_however_it_is_computed(alone, name, way):
    method, options = METHODS[name]
    found = step_gradients(World(), method, options, **WAYS[way])
    assert_same_step(alone[name], found["loss"], found["gradients"])


def test_one_process_gathers_nothing():
    features = torch.randn(3, 4)
    assert gather(features, World()) is features


def test_two_halves_alone_are_not_the_whole():
    """What `test_ranks_train_what_one_process_trains` would miss if the gather lost the other ranks' columns."""
    values = student("hard_world4_gwg1_local1")
    halves = [{k: v[i : i + 6] if isinstance(v, Tensor) else v for k, v in values.items()} for i in (0, 6)]
    alone = [loss_of_rows(World(), **half)["loss"] for half in halves]
    assert sum(alone) / 2 != pytest.approx(loss_of_rows(World(), **values)["loss"], rel=0.05)
