"""What the benchmarks compute from what the two sides leave, without running either."""

from __future__ import annotations

import logging
import zipfile
from itertools import pairwise

import pytest

from benchmarks import gpu, ours, peer, rounds, train, wheels
from orchestrator.models import catalog

LINE = (
    "Train Epoch: 0 [  320/1536 (21%)] Data (t): 0.250 Batch (t): 1.000, 64.0021/s, 64.0021/s/gpu "
    "LR: 0.000250 Logit Scale: 14.286 Contrastive_loss: 4.2 (4.3) Distill_loss: 1.5 (1.6) Loss: 5.7 (5.9)"
)


def trace(rate: float, steps: int = 5, batch: int = 10, cpu: float = 0.5, start_up_s: float = 100.0) -> rounds.Trace:
    """A training of so many samples a second after a slow first step."""
    points = []
    for step in range(1, steps + 1):
        seconds = start_up_s + (step - 1) * batch / rate
        points.append(rounds.Point(seconds, step * batch, 5.0 - step, cpu * step * batch, 0.1))
    return rounds.Trace(points, 1 << 30, {"metrics": {}})


def test_the_first_steps_do_not_count():
    rates = trace(rate=50.0).steady(skip=10)
    assert rates.samples_per_s == pytest.approx(50.0)
    assert rates.cpu_s_per_sample == pytest.approx(0.5)
    assert rates.wait == pytest.approx(0.1)


def test_a_trace_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="train longer"):
        trace(rate=50.0, steps=3).steady(skip=30)


def test_a_trace_survives_the_way_through_a_file(tmp_path):
    mine = trace(rate=3.0)
    mine.write(tmp_path / "trace")
    assert rounds.Trace.read(tmp_path / "trace") == mine


def test_sides_take_turns_and_medians_are_compared():
    order: list[str] = []
    speeds = {"ours": [30.0, 10.0, 20.0], "peer": [10.0, 10.0, 5.0]}

    def side(name):
        def run():
            order.append(name)
            return trace(speeds[name][order.count(name) - 1], cpu=1.0 if name == "ours" else 3.0)

        return run

    compared = rounds.alternate({n: side(n) for n in speeds}, 3, skip=10, against="peer", say=lambda line: None)
    assert order == ["ours", "peer"] * 3
    assert compared.ratio("ours") == pytest.approx(2.0)
    assert compared.ratios("ours") == pytest.approx([3.0, 1.0, 4.0])
    assert compared.cpu_ratio("ours") == pytest.approx(3.0)
    assert compared.summary()["peer"]["ratio"] == 1.0


def test_loss_curves_keep_their_ends():
    losses = trace(rate=1.0, steps=50).losses(number=5)
    assert len(losses) == 5
    assert (losses[0][0], losses[-1][0]) == (10, 500)


def test_the_peers_log_is_read_line_by_line():
    stamps = peer._Stamps()
    for text in ("Start epoch 0", LINE):
        stamps.emit(logging.LogRecord("root", logging.INFO, "", 0, text, None, None))
    (point,) = stamps.points
    assert (point.samples, point.loss, point.wait) == (320, 5.7, 0.25)


def test_a_failing_child_tells_what_it_said(tmp_path):
    with pytest.raises(RuntimeError, match="no such thing here"):
        rounds.child(["-c", "raise SystemExit('no such thing here')"], 1, tmp_path)


@pytest.mark.parametrize("arguments", [["--steps", "5", "--skip", "4"], ["--source", "nowhere"]])
def test_impossible_options_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        train.options(arguments)


def test_both_sides_are_told_the_same():
    chosen = train.options(["--model", "tiny", "--batch", "32", "--steps", "9"])
    arguments = peer.Peer("x.tar", ("tiny", {}), chosen.batch, chosen.steps).arguments()
    told = dict(pairwise(arguments))
    settings = ours.settings(chosen.batch, chosen.steps, chosen.model)
    assert int(told["--train-num-samples"]) == settings["batch"] * settings["steps"]
    assert float(told["--lr"]) == settings["learning_rate"]
    assert float(told["--wd"]) == settings["weight_decay"]
    assert int(told["--warmup"]) == settings["warmup_steps"]
    assert "--grad-clip-norm" not in told
    assert settings["clip_grad_norm"] is None


def machine(monkeypatch, seen: dict[int, float], peer_fits: int = 1 << 20) -> gpu.Machine:
    """A GPU of known speeds by batch; other batches do not fit, nor does the peer above `peer_fits`."""
    found = object.__new__(gpu.Machine)
    found.chosen = gpu.options(["--batches", "16", "32", "64", "128", "--report-every", "1"])
    found.samples, found.over = 1 << 20, lambda: False
    found.ours = lambda name, batch, steps, compiled: batch
    found.peer = lambda name, batch, steps, flags: batch

    class Bench:
        def train(self, batch):
            if batch not in seen:
                raise RuntimeError("CUDA out of memory. Tried to allocate\nand more")
            return trace(seen[batch], batch=batch)

    def train_peer(batch, threads):
        if batch > peer_fits:
            raise RuntimeError("torch.OutOfMemoryError: CUDA out of memory.")

    found.bench = Bench()
    monkeypatch.setattr(peer, "train", train_peer)
    return found


@pytest.mark.parametrize(
    ("seen", "peer_fits", "batch"),
    [
        ({16: 100, 32: 150, 64: 190, 128: 192}, 999, 64),
        ({16: 100, 32: 150}, 999, 32),
        ({16: 100, 32: 150, 64: 190, 128: 240}, 40, 32),
        ({16: 100, 32: 90}, 999, 16),
    ],
    ids=["gains nothing", "memory ends", "the peer's memory ends", "smaller is better"],
)
def test_the_largest_batch_is_the_one_that_pays(monkeypatch, seen, peer_fits, batch):
    found, tried = machine(monkeypatch, seen, peer_fits).largest_batch("x")
    assert found == batch
    assert set(tried) >= {"16", "32"}


def test_repeated_shards_have_running_numbers_and_no_leftovers(tmp_path):
    for number in range(2):
        (tmp_path / f"bench-{number:05d}.tar").write_text(str(number))
    paths = sorted(tmp_path.glob("*.tar"))
    assert len(gpu.repeat(paths, tmp_path / "more", 3)) == 6
    again = gpu.repeat(paths, tmp_path / "more", 2)
    assert [path.read_text() for path in again] == ["0", "1", "0", "1"]
    assert sorted((tmp_path / "more").iterdir()) == again


def test_only_missing_wheels_are_unpacked(tmp_path, monkeypatch):
    for name in ("rich", "ftfy"):
        with zipfile.ZipFile(tmp_path / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            folder = f"{name}-1.0.dist-info"
            wheel.writestr(f"{name}.py", "x = 1\n")
            wheel.writestr(f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{folder}/RECORD", "")
    monkeypatch.setattr(wheels, "_here", lambda module: module != "ftfy")
    assert wheels.missing() == ["ftfy"]
    names = {path.name for path in wheels.unpack(tmp_path).glob("*.py")}
    assert names == {"ftfy.py"}


@pytest.mark.parametrize(("model", "gflops"), [("ViT-S-32", 5.66), ("ViT-B-32", 14.78), ("ViT-B-16", 41.09)])
def test_the_peers_arithmetic_is_what_open_clip_publishes(model, gflops):
    assert gpu.flops_per_sample(catalog.resolve(model)) == pytest.approx(3e9 * gflops, rel=1e-3)
