"""Losses computed some rows at a time: the same numbers, and memory that does not grow with the square."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from orchestrator.methods.clip.loss import info_nce
from orchestrator.methods.tinyclip.loss import Pairs, affinity_mimicking
from orchestrator.training import rows

ROWS, COLUMNS = 10, 30


def contrastive(features: dict[str, Tensor], scale: Tensor) -> tuple[Tensor, ...]:
    return (info_nce(features["image"], features["text"], features["all_image"], features["all_text"], scale, 1),)


def mimicking(features: dict[str, Tensor], scale: Tensor) -> tuple[Tensor, ...]:
    teacher = {name: (2 * value).detach().flip(1) for name, value in features.items()}
    found = affinity_mimicking(Pairs(**features, scale=scale), Pairs(**teacher, scale=3.0))
    return (found.image_to_text + 2 * found.text_to_image, found.kl)


LOSSES = {"contrastive": contrastive, "mimicking": mimicking}


def values_and_gradients(loss: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"image": ROWS, "text": ROWS, "all_image": COLUMNS, "all_text": COLUMNS}
    features = {
        name: torch.randn(size, 4, generator=generator, dtype=torch.float64).requires_grad_()
        for name, size in sizes.items()
    }
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    values = LOSSES[loss](features, scale)
    values[0].backward()
    return [*values, *(value.grad for value in features.values()), scale.grad]


@pytest.mark.parametrize("pairs", [1, 3 * COLUMNS, 4 * COLUMNS + 1, ROWS * COLUMNS])
@pytest.mark.parametrize("loss", LOSSES)
def test_any_number_of_rows_at_a_time_gives_the_same_loss_and_gradients(loss, pairs, monkeypatch):
    whole = values_and_gradients(loss)
    monkeypatch.setattr(rows, "MAX_PAIRS", pairs)
    for found, expected in zip(values_and_gradients(loss), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_similarities_are_kept_for_the_backward_pass(loss, monkeypatch):
    monkeypatch.setattr(rows, "MAX_PAIRS", 3 * COLUMNS)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        values_and_gradients(loss)
    assert max(kept) <= 4 * COLUMNS


@pytest.mark.parametrize("pairs", [1, 70, 300])
def test_closest_columns_do_not_depend_on_the_rows_at_a_time(pairs, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    some, columns = torch.randn(ROWS, 4, generator=generator), torch.randn(COLUMNS, 4, generator=generator)
    monkeypatch.setattr(rows, "MAX_PAIRS", pairs)
    assert torch.equal(rows.closest(some, columns), (some @ columns.T).argmax(dim=1))


PEAK = """
import sys, psutil, torch
from orchestrator.methods.clip.loss import info_nce
torch.set_num_threads(1)
image, text = torch.nn.functional.normalize(torch.randn(2, int(sys.argv[1]), 64), dim=-1)
image, text = image.requires_grad_(), text.requires_grad_()
before = psutil.Process().memory_info().rss
info_nce(image, text, image, text, torch.tensor(50.0), 0).backward()
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(1024 * int(peak) - before)
"""


def test_peak_memory_does_not_grow_with_the_square_of_the_batch():
    """8,192 rows make 268 MB of similarities, several times over; at most 67 MB may exist of each."""
    peak = subprocess.run([sys.executable, "-c", PEAK, "8192"], capture_output=True, text=True, check=True)
    assert int(peak.stdout) < 400e6
