"""The smallest things the loop can train: a two-tower method with dropout and two phases, a batch source, a recording
IO.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.training.checkpoint import from_bytes, to_bytes
from orchestrator.training.config import TrainSettings
from orchestrator.training.loop import fit
from orchestrator.training.method import LossOutput, Method
from orchestrator.training.types import Batch, FitSpec, Phase, Report, World

BATCH = 12
NUM_SAMPLES = 100
VOCABULARY = 40


def normalise(pixels: Tensor) -> Tensor:
    return pixels.to(torch.get_default_dtype()) / 127.5 - 1


class TinyClip(Method):
    """Symmetric contrastive loss with a learnable scale; `two_phases` freezes the text tower in the first half."""

    def __init__(self, world: World, dropout: float = 0.0, two_phases: bool = False) -> None:
        nn.Module.__init__(self)
        self.world, self.two_phases = world, two_phases
        torch.manual_seed(1)
        self.image = nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.GELU(), nn.Dropout(dropout), nn.Linear(24, 8))
        self.text = nn.EmbeddingBag(VOCABULARY, 8, mode="mean")
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.log: list[str] = []

    def phases(self, total_samples: int) -> Sequence[Phase]:
        if not self.two_phases:
            return super().phases(total_samples)
        return (Phase("image", total_samples // 2), Phase("both", total_samples))

    def on_phase_start(self, phase: Phase) -> None:
        self.text.requires_grad_(phase.name != "image")
        self.log.append(f"start {phase.name}")

    def on_phase_end(self, phase: Phase) -> None:
        self.log.append(f"end {phase.name}")
        with torch.no_grad():  # what a phase's end may do: draw random numbers, move weights
            self.image[1].weight.mul_(1 + 0.01 * torch.rand(()))

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        unit = nn.functional.normalize
        return {"image": unit(self.image(batch.images[0]), dim=-1), "text": unit(self.text(batch.tokens[0]), dim=-1)}

    def loss(self, features: dict[str, Tensor], state: dict[str, Any]) -> LossOutput:
        images, texts, first = features["image"], features["text"], 0
        if self.world.size > 1:
            from torch.distributed.nn.functional import all_gather

            first = self.world.rank * len(images)
            all_images, all_texts = torch.cat(all_gather(images)), torch.cat(all_gather(texts))
        else:
            all_images, all_texts = images, texts
        labels = torch.arange(len(images)) + first
        scale, cross_entropy = self.logit_scale.exp(), nn.functional.cross_entropy
        value = (
            cross_entropy(scale * images @ all_texts.T, labels) + cross_entropy(scale * texts @ all_images.T, labels)
        ) / 2
        return LossOutput({"contrastive": value}, {"logit_scale": scale.detach()})

    def result(self) -> nn.Module:
        return self

    def flops(self, batch: Batch) -> float:
        return 1e6 * len(batch)

    def on_step_end(self, samples: int) -> None:
        with torch.no_grad():
            self.logit_scale.clamp_(0, 4.6)


class TinyFeed:
    """Random pictures and words of a fixed set of samples, in a seeded order that depends on the position alone."""

    def __init__(self, start: int, world: World, poison: frozenset[int] = frozenset()) -> None:
        self.position, self.world, self.poison = start, world, poison
        self.wait_s = 0.0
        self.seen: list[str] = []
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (NUM_SAMPLES, 3, 4, 4), generator=generator, dtype=torch.uint8)
        self.tokens = torch.randint(0, VOCABULARY, (NUM_SAMPLES, 5), generator=generator)

    def __enter__(self) -> TinyFeed:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def __iter__(self) -> Iterator[Batch]:
        while True:
            rows = torch.tensor([self._row(position) for position in range(self.position, self.position + BATCH)])
            mine = rows.chunk(self.world.size)[self.world.rank]
            self.seen += [f"{row:032x}" for row in mine.tolist()]
            images = self.images[mine]
            if self.position in self.poison:  # a float view, as a method with float inputs would see it
                images = images.float() * torch.inf
            self.position += BATCH
            yield Batch((images,), (self.tokens[mine],), tuple(f"{row:032x}" for row in mine.tolist()))

    def _row(self, position: int) -> int:
        epoch, place = divmod(position, NUM_SAMPLES)
        order = torch.randperm(NUM_SAMPLES, generator=torch.Generator().manual_seed(epoch))
        return int(order[place])


class RecordingIO:
    """Keeps everything in memory; stops when told, with checkpoints as bytes like the real ones."""

    def __init__(self, checkpoint: bytes | None = None, stop_at: int | None = None) -> None:
        self.checkpoint, self.stop_at = checkpoint, stop_at
        self.checkpoints: dict[int, bytes] = {}
        self.reports: list[Report] = []
        self.messages: list[tuple[str, str]] = []
        self.phases: list[str] = []
        self.bad: dict[int, tuple[str, ...]] = {}
        self.steps = 0

    def save(self, samples: int, state: Any) -> None:
        self.checkpoint = self.checkpoints[samples] = to_bytes(state)

    def kept(self) -> list[int]:
        return [self.steps]

    def load(self) -> Any:
        return None if self.checkpoint is None else from_bytes(self.checkpoint)

    def report(self, report: Report) -> None:
        self.reports.append(report)

    def phase(self, name: str) -> None:
        self.phases.append(name)

    def message(self, level: str, text: str) -> None:
        self.messages.append((level, text))

    def nonfinite(self, samples: int, uids: Sequence[str]) -> None:
        self.bad[samples] = tuple(uids)

    def should_stop(self) -> str | None:
        """Asked once a step: stops after `stop_at` steps of this process."""
        self.steps += 1
        return "asked" if self.steps == self.stop_at else None


def train(
    io: RecordingIO,
    *,
    steps: int = 24,
    world: World | None = None,
    poison: frozenset[int] = frozenset(),
    dropout: float = 0.2,
    two_phases: bool = True,
    validate: Any = None,
    **settings: Any,
) -> tuple[TinyClip, list[Report], list[str]]:
    """One call of `fit`: the trained method, its reports, and the ids this rank has seen."""
    world = world or World()
    settings = {"steps": steps, "batch": BATCH, "learning_rate": 0.01, "warmup_steps": 4, "report_every": 5} | settings
    settings = TrainSettings(**settings)
    method = TinyClip(world, dropout, two_phases)
    feeds: list[TinyFeed] = []

    def loader(start: int) -> TinyFeed:
        feeds.append(TinyFeed(start, world, poison))
        return feeds[-1]

    spec = FitSpec(settings, settings.total_samples(NUM_SAMPLES), normalise, validate)
    reports = list(fit(spec, method, loader, world, io))
    return method, reports, feeds[0].seen


def curves(reports: Sequence[Report]) -> list[tuple[int, dict[str, float]]]:
    """What must be equal between two right runs: everything but times and memory."""
    timed = ("samples_per_s", "tokens_per_s", "tflops_per_s", "data_wait_share", "memory_bytes")
    return [(r.samples, {k: v for k, v in r.metrics.items() if k not in timed}) for r in reports]
