"""A toy world for the evaluation: concepts are colours, images show them, and a model reads both, finely or coarsely.

`ToyDataset` is a Dataset in memory: concepts in styles a, b (trained) and z (held out); every fourth cell of style b
is `id`, the last concepts are `unseen`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from orchestrator.data.dataset import Caption, Dataset, Sample
from orchestrator.data.preprocess import Preprocess
from orchestrator.errors import UserError
from orchestrator.models.interface import Model

PREPROCESS = Preprocess(image_size=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def colour(number: int) -> tuple[int, int, int]:
    return (number * 37 % 256, number * 101 % 256, number * 197 % 256)


class ToyDataset(Dataset):
    def __init__(self, columns: dict[str, np.ndarray], samples: list[Sample], name: str = "toy") -> None:
        self.name, self._columns, self._samples = name, columns, samples

    @classmethod
    def make(cls, num_concepts: int = 24, num_unseen: int = 4, columns=("concept", "style", "split"), captions=1):
        table: dict[str, list[str]] = {"concept": [], "style": [], "split": []}
        samples = []
        for style in "abz":
            for number in range(num_concepts):
                seen = number < num_concepts - num_unseen
                held = "ood" if style == "z" else "id" if style == "b" and number % 4 == 0 else "train"
                for name, value in zip(table, (f"k{number:03d}", style, held if seen else "unseen")):
                    table[name].append(value)
                buffer = BytesIO()
                Image.new("RGB", (8, 8), colour(number)).save(buffer, "PNG")
                texts = [f"c{number:03d}"] + [f"a view of c{number:03d}"] * (captions - 1)
                uid = hashlib.sha256(f"{style}{number}".encode()).hexdigest()[:32]
                made = (*(Caption("original", "en", text) for text in texts), Caption("keywords", "en", "thing"))
                samples.append(Sample(uid, buffer.getvalue(), made))
        return cls({name: np.array(table[name]) for name in columns}, samples)

    def __len__(self) -> int:
        return len(self._samples)

    def check_shards(self) -> None:
        """There are none."""

    @property
    def rows(self) -> np.ndarray:
        return np.array([int(sample.uid[:8], 16) for sample in self._samples])

    def describe(self, row: int) -> str:
        return f"sample {self._samples[row].uid}"

    @property
    def uids(self) -> Sequence[str]:
        return [sample.uid for sample in self._samples]

    @property
    def columns(self) -> Sequence[str]:
        return list(self._columns)

    def column(self, name: str) -> np.ndarray:
        if name not in self._columns:
            raise UserError(f"no column {name}")
        return self._columns[name]

    def captions(self, rows: Sequence[int]) -> list[tuple[Caption, ...]]:
        return [self._samples[row].captions for row in rows]

    def take(self, rows: Sequence[int]) -> ToyDataset:
        columns = {name: column[list(rows)] for name, column in self._columns.items()}
        return ToyDataset(columns, [self._samples[row] for row in rows], self.name)

    def images(self, rows: Sequence[int]) -> list[bytes]:
        return [self._samples[row].image for row in rows]

    def read(self, rows: Sequence[int]) -> list[Sample]:
        return [self._samples[row] for row in rows]


def broken(dataset: ToyDataset, row: int) -> str:
    """Cut a sample's image off after its header; the sample's uid."""
    whole = dataset._samples[row]
    dataset._samples[row] = Sample(whole.uid, whole.image[:40], whole.captions)
    return whole.uid


def tokenize(texts: Sequence[str]) -> Tensor:
    """The colour that a text's last word names."""
    return torch.tensor([colour(int(text.split()[-1][1:])) for text in texts])


class ToyModel(Model):
    """Colour to features; images are seen in steps of `grain`, so only a grain of 1 tells every concept apart."""

    def __init__(self, grain: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.grain = grain
        self.project = nn.Parameter(torch.randn(3, 64, generator=generator))
        self.phase = nn.Parameter(6.28 * torch.rand(64, generator=generator))

    def _features(self, colours: Tensor) -> Tensor:
        return normalize(torch.cos(0.02 * colours @ self.project + self.phase), dim=-1)

    def encode_image(self, images: Tensor) -> Tensor:
        return self._features((images.mean(dim=(2, 3)) * 255 / self.grain).round() * self.grain)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self._features(tokens.float())
