"""What a step keeps in memory: with gradient caching, pixels and features alone grow with the batch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from training_tiny import TinyClip, normalise

from orchestrator.training import gradient_cache
from orchestrator.training.gradient_cache import Encoder, choose_micro_batch, forward_backward, is_out_of_memory
from orchestrator.training.types import Batch, World

STEP = """
import sys, torch
from torch import nn
from orchestrator.training import gradient_cache
from orchestrator.training.method import LossOutput, Method
from orchestrator.training.types import Batch, World

class Wide(Method):
    '''A tower whose activations are 20 times its pixels: 768 bytes of pixels, 16 kB of activations.'''

    def __init__(self):
        nn.Module.__init__(self)
        self.tower = nn.Sequential(nn.Flatten(), nn.Linear(768, 1024), nn.GELU(), nn.Linear(1024, 1024), nn.GELU())
        self.head = nn.Linear(1024, 16)

    def encode(self, batch):
        return {"image": self.head(self.tower(batch.images[0]))}

    def loss(self, features, state):
        return LossOutput({"size": features["image"].square().mean()}, {})

torch.set_num_threads(1)
size, micro_batch = int(sys.argv[1]), int(sys.argv[2])
batch = Batch((torch.zeros(size, 3, 16, 16, dtype=torch.uint8),), (), ("",) * size)
encode = gradient_cache.Encoder(Wide(), lambda pixels: pixels / 255, World().device, None, seed=0)
gradient_cache.forward_backward(encode, batch, micro_batch, (0, 0), {})
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_bytes(size: int, micro_batch: int) -> int:
    """Of one step in a process of its own, whose allocator gives large blocks back at once (glibc would keep some)."""
    command, environment = (
        [sys.executable, "-c", STEP, str(size), str(micro_batch)],
        {"MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment)
    return 1024 * int(found.stdout)  # VmHWM; ru_maxrss would begin at the parent's, where the child was forked


def test_peak_memory_of_two_batch_sizes_differs_by_pixels_and_features_alone():
    """3,840 more samples: 2.9 MB of pixels, under 1 MB of features and their gradients, but 60 MB of activations."""
    small, large = peak_bytes(256, 128), peak_bytes(4096, 128)
    assert large - small < 5e6
    assert peak_bytes(4096, 4096) - large > 40e6


@pytest.fixture
def encode() -> Encoder:
    return Encoder(TinyClip(World()), normalise, World().device, None, seed=0)


def batch_of(size: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 3, 4, 4), generator=generator, dtype=torch.uint8)
    return Batch((images,), (torch.randint(0, 40, (size, 5), generator=generator),), ("",) * size)


def test_automatic_micro_batch_is_the_largest_that_fits(encode, monkeypatch):
    batch = batch_of(100)
    a_sample = gradient_cache._kept_bytes(encode, batch, (0, 0)) / 100

    def chosen(samples: float) -> int:
        monkeypatch.setattr(gradient_cache, "_free_bytes", lambda world: int(2.2 * samples * a_sample))
        return choose_micro_batch(encode, batch, (0, 0), World())

    assert [chosen(samples) for samples in (200, 100, 60, 30, 20, 0)] == [100, 100, 50, 25, 13, 1]


def test_the_machine_has_memory_to_give():
    assert 2**20 < gradient_cache._free_bytes(World()) < 2**50


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (KeyError("image"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) is expected


def test_an_allocation_that_this_machine_refuses_is_recognised():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)


class Counting(TinyClip):
    """Counts how often each tower runs; `frozen` ones are the targets."""

    def __init__(self, frozen: bool) -> None:
        super().__init__(World())
        self.frozen, self.calls = frozen, {"targets": 0, "encode": 0}
        if frozen:
            self.text.requires_grad_(False)

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        self.calls["targets"] += 1
        assert not torch.is_grad_enabled()
        return {"text": super().encode(batch)["text"]} if self.frozen else {}

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        self.calls["encode"] += 1
        features = super().encode(batch)
        return {"image": features["image"]} if self.frozen else features


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_targets_are_computed_once_and_stand_beside_the_features(micro_batch):
    gradients = []
    for frozen in (False, True):
        method = Counting(frozen)
        forward_backward(
            Encoder(method, normalise, World().device, None, seed=0), batch_of(12), micro_batch, (0, 0), {}
        )
        gradients.append([method.image[1].weight.grad, method.logit_scale.grad])
        parts = 1 if micro_batch is None else 3
        assert method.calls == {"targets": parts, "encode": parts if micro_batch is None else 2 * parts}
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("micro_batch", [None, 5])
def test_the_scale_of_the_loss_scales_gradients_and_not_what_is_reported(encode, micro_batch):
    found = []
    for scale in (1.0, torch.tensor(1024.0)):
        encode.method.zero_grad()
        output = forward_backward(encode, batch_of(12), micro_batch, (0, 0), {}, loss_scale=scale)
        found.append((output.total.item(), [parameter.grad.clone() for parameter in encode.method.parameters()]))
    (plain, gradients), (scaled, larger) = found
    assert plain == scaled
    for one, other in zip(gradients, larger, strict=True):
        torch.testing.assert_close(1024 * one, other)


def test_nothing_is_encoded_twice_where_all_towers_are_frozen():
    method = Counting(frozen=True)
    method.image.requires_grad_(False)
    forward_backward(Encoder(method, normalise, World().device, None, seed=0), batch_of(12), 4, (0, 0), {})
    assert method.calls["encode"] == 4  # three micro-batches, and the first again to see that it needs no gradient
    assert method.logit_scale.grad is not None
