"""What `fit` promises: exact resume, reports, policies, gradient caching."""

from __future__ import annotations

import random

import pytest
import torch
from training_tiny import BATCH, NUM_SAMPLES, RecordingIO, TinyClip, TinyFeed, curves, train

from orchestrator.errors import NotFiniteError, UserError
from orchestrator.training.types import World

STOPS = sorted([*random.Random(0).sample(range(1, 24), 9), 12])  # the phase changes after step 12


@pytest.fixture(scope="module")
def undisturbed():
    io = RecordingIO()
    method, reports, seen = train(io)
    return method, reports, seen, io


def assert_same_weights(one, other):
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("stop", STOPS)
def test_resume_is_bit_equal_after_a_stop_at_any_step(undisturbed, stop):
    method, reports, seen, _ = undisturbed
    io = RecordingIO(stop_at=stop)
    _, before, seen_before = train(io)
    assert before[-1].stopped == "asked"
    assert not before[-1].final
    assert before[-1].samples == stop * BATCH
    resumed = RecordingIO(io.checkpoint)
    torch.manual_seed(stop)  # whatever the process did before must not matter
    again, after, seen_after = train(resumed)
    assert_same_weights(method, again)
    assert seen_before + seen_after == seen
    assert curves(io.reports) + curves(after) == curves(reports)


def test_resume_is_bit_equal_after_a_kill_that_lost_steps(undisturbed):
    method, *_ = undisturbed
    io = RecordingIO(stop_at=20)
    train(io, checkpoint_every=7)
    assert sorted(io.checkpoints) == [7 * BATCH, 14 * BATCH, 20 * BATCH]
    again, _, _ = train(RecordingIO(io.checkpoints[14 * BATCH]))
    assert_same_weights(method, again)


def test_checkpoint_and_report_intervals_do_not_touch_the_weights(undisturbed):
    again, reports, _ = train(RecordingIO(), checkpoint_every=1, report_every=1)
    assert_same_weights(undisturbed[0], again)
    assert len(reports) == 24


def test_last_report_is_final_and_phases_run_once_in_order(undisturbed):
    method, reports, _, io = undisturbed
    assert [r.samples for r in reports] == [60, 120, 180, 240, 288]
    assert [r.final for r in reports] == [False] * 4 + [True]
    assert all(r.stopped is None for r in reports)
    assert io.reports == reports
    assert io.phases == ["image", "both"]
    assert method.log == ["start image", "end image", "start both", "end both"]
    assert {"loss", "loss_contrastive", "logit_scale", "grad_norm", "learning_rate", "samples_per_s"} <= set(
        reports[0].metrics
    )
    assert {"tokens_per_s", "data_wait_share", "memory_bytes"} <= set(reports[0].metrics)


def test_training_learns():
    _, reports, _ = train(RecordingIO(), steps=100, dropout=0.0, two_phases=False)
    assert reports[-1].metrics["loss"] < 0.7 * reports[0].metrics["loss"]


def test_a_frozen_phase_moves_only_what_it_trains():
    method, _, _ = train(RecordingIO(stop_at=12))
    from training_tiny import TinyClip

    fresh = TinyClip(World())
    assert torch.equal(method.text.weight, fresh.text.weight)
    assert not torch.equal(method.image[4].weight, fresh.image[4].weight)


@pytest.mark.parametrize("micro_batch", [5, 6, 1])
def test_gradient_caching_equals_the_full_batch(micro_batch):
    """Also for the logit scale, whose gradient accumulation would multiply."""
    torch.set_default_dtype(torch.float64)
    try:
        full, full_reports, _ = train(RecordingIO(), dropout=0.0)
        cached, reports, _ = train(RecordingIO(), dropout=0.0, micro_batch=micro_batch)
    finally:
        torch.set_default_dtype(torch.float32)
    for (name, a), b in zip(full.state_dict().items(), cached.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10, msg=name)
    assert reports[0].metrics["grad_norm"] == pytest.approx(full_reports[0].metrics["grad_norm"], abs=1e-10)


def test_gradient_caching_draws_the_same_dropout_in_both_encodings():
    """With other draws in the second pass the gradient would belong to another function: compare with finite
    differences.
    """
    from training_tiny import TinyClip, normalise

    from orchestrator.training.gradient_cache import Encoder, forward_backward

    torch.set_default_dtype(torch.float64)
    try:
        method = TinyClip(World(), dropout=0.5)
        batch = next(iter(TinyFeed(0, World())))
        encode = Encoder(method, normalise, torch.device("cpu"), autocast=False, seed=3)
        forward_backward(encode, batch, 4, (0, 0), {})
        weight, eps = method.image[1].weight, 1e-6
        gradient = weight.grad.clone()
        place = tuple(torch.nonzero(gradient.abs() == gradient.abs().max())[0])
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[place] += sign * eps
            values.append(forward_backward(encode, batch, 4, (0, 0), {}).total.item())
            with torch.no_grad():
                weight[place] -= sign * eps
    finally:
        torch.set_default_dtype(torch.float32)
    assert gradient[place].item() == pytest.approx((values[0] - values[1]) / (2 * eps), rel=1e-5)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_batch():
    io = RecordingIO()
    with pytest.raises(NotFiniteError, match="at 48 samples") as caught:
        train(io, poison=frozenset({48}), betas=[0.9, 0.98], dropout=0.0)
    assert len(caught.value.uids) == BATCH
    assert io.bad == {48: caught.value.uids}


def test_steps_that_are_not_finite_are_skipped_up_to_the_limit_over_resumes():
    io = RecordingIO(stop_at=6)
    poison = frozenset({24, 48, 96})
    train(io, poison=poison, on_nonfinite="skip", nonfinite_limit=2)
    assert list(io.bad) == [24, 48]
    resumed = RecordingIO(io.checkpoint)
    with pytest.raises(NotFiniteError, match="after 2 skipped"):
        train(resumed, poison=poison, on_nonfinite="skip", nonfinite_limit=2)
    method, reports, _ = train(RecordingIO(), poison=poison, on_nonfinite="skip", nonfinite_limit=3)
    assert all(torch.isfinite(value).all() for value in method.state_dict().values())
    assert all(value == value for report in reports for value in report.metrics.values())


def test_a_change_of_threads_is_said():
    io = RecordingIO(stop_at=3)
    train(io)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        resumed = RecordingIO(io.checkpoint)
        train(resumed)
    finally:
        torch.set_num_threads(before)
    assert [level for level, _ in resumed.messages] == ["warning"]
    assert f"threads {before} → {before + 1}" in resumed.messages[0][1]


def test_a_batch_that_ranks_cannot_share_is_refused():
    with pytest.raises(UserError, match="cannot be shared by 5"):
        train(RecordingIO(), world=World(rank=0, size=5))


def test_bf16_encoders_still_learn_in_fp32_weights():
    method, reports, _ = train(RecordingIO(), precision="bf16", steps=60, dropout=0.0, two_phases=False)
    assert {value.dtype for value in method.state_dict().values()} == {torch.float32}
    assert reports[-1].metrics["loss"] < reports[0].metrics["loss"]


def test_lengths_are_whole_batches():
    from orchestrator.training.config import TrainSettings

    table = [
        ({"steps": 3}, 36),
        ({"samples": 25}, 36),
        ({"samples": 24}, 24),
        ({"epochs": 1.0}, 108),
        ({"epochs": 0.24}, 24),
    ]
    for length, samples in table:
        assert TrainSettings(batch=BATCH, **length).total_samples(NUM_SAMPLES) == samples


def test_auto_halves_the_micro_batch_where_memory_runs_out_and_remembers_it(undisturbed, monkeypatch):
    encode, sizes = TinyClip.encode, []

    def small_memory(self, batch):
        if len(batch) > 4:
            raise torch.OutOfMemoryError("allocation refused")
        sizes.append(len(batch))
        return encode(self, batch)

    monkeypatch.setattr("orchestrator.training.gradient_cache.choose_micro_batch", lambda *_: BATCH)
    monkeypatch.setattr(TinyClip, "encode", small_memory)
    io = RecordingIO(stop_at=9)
    train(io, micro_batch="auto")
    assert set(sizes) == {3}
    assert [text for _, text in io.messages] == [f"out of memory: going on with micro-batches of {n}" for n in (6, 3)]
    monkeypatch.setattr("orchestrator.training.gradient_cache.choose_micro_batch", lambda *_: pytest.fail("measured"))
    resumed, _, _ = train(RecordingIO(io.checkpoint), micro_batch="auto")
    whole, _, _ = train(RecordingIO(), micro_batch=3)
    assert_same_weights(resumed, whole)
    with pytest.raises(RuntimeError, match="refused"):
        train(RecordingIO(), micro_batch=6)
