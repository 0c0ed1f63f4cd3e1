"""Validation in training, the moving average, the best weights: what they are, and that nobody notices them."""

from __future__ import annotations

import math

import pytest
import torch
from training_tiny import BATCH, RecordingIO, curves, train

from orchestrator.errors import UserError
from orchestrator.training.average import Average
from orchestrator.training.checkpoint import from_bytes
from orchestrator.training.config import Ema, TrainSettings

EVERY = 3 * BATCH


def look(model) -> dict[str, float]:
    """A figure of the weights alone, which falls and rises in the course of a training, and careless draws."""
    torch.rand(7)
    assert not model.training
    return {"val/loss": math.cos(80 * model.logit_scale.item())}


def settings(**more) -> dict:
    return {"validation": {"every_samples": EVERY}, "validate": look} | more


@pytest.fixture(scope="module")
def plain():
    return train(RecordingIO())


def points(reports) -> dict[int, float]:
    return {r.samples: r.metrics["val/loss"] for r in reports if "val/loss" in r.metrics}


def test_validation_happens_at_its_interval_and_at_the_end_and_leaves_the_training_as_it_is(plain):
    method, reports, _ = train(RecordingIO(), **settings(ema={}))
    assert all(torch.equal(a, b) for a, b in zip(method.state_dict().values(), plain[0].state_dict().values()))
    assert sorted(points(reports)) == [EVERY * n for n in range(1, 9)]
    without = [point for point in curves(reports) if "loss" in point[1]]
    trimmed = [(samples, {k: v for k, v in m.items() if not k.startswith("val")}) for samples, m in without]
    assert trimmed == curves(plain[1])


def test_an_interval_is_rounded_up_to_whole_batches():
    _, reports, _ = train(RecordingIO(), **settings(validation={"every_samples": EVERY - 5}))
    assert min(points(reports)) == EVERY


@pytest.mark.parametrize(("mode", "choose"), [("min", min), ("max", max)])
def test_best_is_the_weights_of_the_best_validation(mode, choose):
    seen = {}

    def record(model):
        figures = look(model)
        seen[figures["val/loss"]] = {name: value.clone() for name, value in model.state_dict().items()}
        return figures

    _, reports, _ = train(RecordingIO(), **settings(validate=record, result="best", select={"mode": mode}))
    best = choose(points(reports).values())
    assert best not in (next(iter(seen)), list(seen)[-1]), "the example must have its best in the middle"
    assert all(torch.equal(reports[-1].weights[name], value) for name, value in seen[best].items())
    assert reports[-1].metrics["best/val/loss"] == best
    assert points(reports)[int(reports[-1].metrics["best/samples"])] == best


@pytest.mark.parametrize("result", ["last", "best", "ema"])
@pytest.mark.parametrize("stop", [4, 13, 18])
def test_the_result_is_the_same_bits_after_a_stop(result, stop):
    wanted = settings(result=result, ema={"decay": 0.9})
    _, undisturbed, _ = train(RecordingIO(), **wanted)
    stopped = RecordingIO(stop_at=stop)
    train(stopped, **wanted)
    _, resumed, _ = train(RecordingIO(stopped.checkpoint), **wanted)
    for name, value in undisturbed[-1].weights.items():
        assert torch.equal(value, resumed[-1].weights[name]), name
    assert points(stopped.reports) | points(resumed) == points(undisturbed)


def test_the_average_follows_its_formula():
    model = torch.nn.Linear(2, 2)
    averages = [Average(model, Ema(decay=0.9, warmup=warmup)) for warmup in (False, True)]
    expected = [model.weight.detach().clone() for _ in averages]
    for step in range(1, 5):
        with torch.no_grad():
            model.weight += step
        for number, decay in enumerate((0.9, min(0.9, (1 + step) / (10 + step)))):
            averages[number].update(step)
            expected[number] = decay * expected[number] + (1 - decay) * model.weight.detach()
    own = model.weight.detach().clone()
    for average, value in zip(averages, expected):
        with average.in_place():
            torch.testing.assert_close(model.weight.detach(), value)
    assert torch.equal(model.weight, own)


def test_the_average_of_a_finished_training_is_neither_its_beginning_nor_its_end(plain):
    _, reports, _ = train(RecordingIO(), result="ema", ema={"decay": 0.9})
    weight, last = reports[-1].weights["image.1.weight"], plain[1][-1].weights["image.1.weight"]
    assert not torch.allclose(weight, last)
    assert float((weight - last).norm() / last.norm()) < 0.5


@pytest.mark.parametrize(
    ("options", "match"),
    [({"result": "ema"}, "needs a moving average"), ({"result": "best"}, "needs validations")],
)
def test_a_result_that_cannot_be_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        TrainSettings(steps=1, **options)


def test_a_figure_that_the_data_cannot_give_is_refused_at_the_first_look():
    with pytest.raises(UserError, match=r"no val/zeroshot\.top1"):
        train(RecordingIO(), **settings(result="best", select={"metric": "val/zeroshot.top1", "mode": "max"}))


def test_fp16_scales_the_loss_and_leaves_out_steps_that_overflow():
    """On a CPU, too: gradients have their true size at the optimiser, and an overflow halves the scale."""
    options = {"dropout": 0.0, "two_phases": False, "report_every": 1, "steps": 12}
    _, exact, _ = train(RecordingIO(), **options)
    for poison in (frozenset(), frozenset({8 * BATCH})):
        io = RecordingIO()
        _, reports, _ = train(io, precision="fp16", poison=poison, checkpoint_every=11, **options)
        skipped = [r.samples - BATCH for r in reports[:11] if "loss" not in r.metrics]
        assert poison <= set(skipped)
        assert from_bytes(io.checkpoint)["loss_scale"]["value"] == 2.0 ** (16 - len(skipped))
        assert io.bad == {}
        for mine, right in zip(reports[:7], exact):
            if "loss" in mine.metrics:
                assert mine.metrics["loss"] == pytest.approx(right.metrics["loss"], rel=0.1)
                assert mine.metrics["grad_norm"] == pytest.approx(right.metrics["grad_norm"], rel=0.1)


def test_layer_decay_and_exclusions_split_the_groups():
    from orchestrator.training.optim import build_optimizer
    from orchestrator.training.types import Group

    names = ["a.weight", "b.weight", "position"]
    parameters = {name: torch.nn.Parameter(torch.ones(2, 2)) for name in names}
    chosen = TrainSettings(steps=1, layer_decay=0.5, no_weight_decay=["position"], weight_decay=0.1)
    groups = [Group("all", tuple(parameters.items()), lr_scale=2.0)]
    optimizer = build_optimizer(groups, chosen, {"a.weight": 2, "b.weight": 1})
    found = {
        name: (group["weight_decay"], group["lr_scale"])
        for group in optimizer.param_groups
        for parameter in group["params"]
        for name, own in parameters.items()
        if own is parameter
    }
    assert found == {"a.weight": (0.1, 0.5), "b.weight": (0.1, 1.0), "position": (0.0, 2.0)}
