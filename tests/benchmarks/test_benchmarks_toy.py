"""The benchmarks themselves at toy size: the real worker and the real open_clip_train, in processes of their own."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks import distill, gpu, gradient_cache, ours, scaling, shards, train

pytest.importorskip("open_clip_train")
pytest.importorskip("webdataset")

SHORT = ["--model", "tiny", "--batch", "16", "--steps", "5", "--skip", "2", "--rounds", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    shared = ["--source", "builtin", "--limit", "64"]
    return [*shared, "--shards", str(folder / "shards"), "--work", str(folder / "work")]


def test_the_gpu_script_runs_at_toy_size_without_a_gpu(places, tmp_path):
    arguments = ["--device", "cpu", "--toy", "--threads", "1", "--batches", "16", "--json", str(tmp_path / "out.json")]
    gpu.main([*arguments, *places])
    found = json.loads((tmp_path / "out.json").read_text())["models"]["tiny"]
    assert found["failed"] == {}
    assert set(found["sides"]) == {"ours", "open_clip_train"}
    for side in found["sides"].values():
        assert side["samples_per_s"] > 0
        assert side["tflops_per_s"] > 0
        assert side["losses"][0][1] == pytest.approx(math.log(16), abs=2.5)  # tiny random features are no small ones


def test_one_step_with_gradient_caching_has_the_loss_of_the_whole_batch(places):
    chosen = gradient_cache.options(places)
    shards.build(chosen.shards, chosen.source, chosen.limit)
    bench = ours.Bench(chosen.shards, chosen.work)
    job = {"store": bench.store.url, "data": bench.data, "model": "tiny", "batch": 96, "threads": 1}
    cached, whole = (gradient_cache.step(job | {"micro_batch": size}) for size in (16, 96))
    assert cached["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert cached["pixel_bytes"] == 96 * 3 * 32 * 32
    assert cached["peak_bytes"] >= cached["peak_before_step_bytes"] > 0


@pytest.mark.slow
def test_training_beside_open_clip_train(places, tmp_path):
    figures = train.main([*SHORT, *places, "--json", str(tmp_path / "out.json")])
    assert set(figures["sides"]) == {"ours", "open_clip_train"}
    assert json.loads((tmp_path / "out.json").read_text())["sides"]["ours"]["ratio"] > 0
    counts = [samples for samples, _ in figures["sides"]["ours"]["losses"]]
    assert counts == [samples for samples, _ in figures["sides"]["open_clip_train"]["losses"]]


@pytest.mark.slow
def test_where_the_time_goes(places):
    figures = train.main([*SHORT, *places, "--profile", "--steps", "16"])
    parts = figures["profile"]["seconds_a_step"]
    sides = {f"{tower} tower, {way}" for tower in ("image", "text") for way in ("forward", "backward")}
    assert sides | {"loss", "optimiser", "rest"} == set(parts)
    assert min(parts.values()) > 0


@pytest.mark.slow
def test_distillation_beside_open_clip_train_sums_the_same_losses(places):
    figures = distill.main([*SHORT, *places, "--teacher", "tiny"])
    first = {side: found["losses"][0][1] for side, found in figures["sides"].items()}
    assert set(first) == {"ours", "ours, cached teacher", "open_clip_train"}
    assert first["ours"] == pytest.approx(first["ours, cached teacher"], rel=0.05)
    assert first["ours"] == pytest.approx(first["open_clip_train"], rel=0.4)  # other pictures, other initial weights


@pytest.mark.slow
def test_two_workers_learn_what_one_does(places):
    figures = scaling.main([*SHORT, *places])
    curves = [[loss for _, loss in side["losses"]] for side in figures["sides"].values()]
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)
    assert curves[2] == pytest.approx(curves[0], rel=1e-3)
