"""What does an `embed` stage's blocks: each is a range of samples, or of distinct captions (stages/blocks.py).

Which inputs are encoded together depends on the block alone, so any number of workers and threads makes the same.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from orchestrator.data.bad import Tally
from orchestrator.data.dataset import Dataset
from orchestrator.plan.types import Resources
from orchestrator.stages.blocks import Work
from orchestrator.stages.embed.batches import Batches, Distinct
from orchestrator.stages.embed.config import EmbedStage
from orchestrator.stages.embed.encoder import Encoder
from orchestrator.store.artifacts import Handle
from orchestrator.store.parts import Parts

CAPTIONS = "captions"
"""Name of the part that says which captions are distinct."""


class Made(NamedTuple):
    """A finished block: values [n, facets, dims], and the bad samples in it as `Tally.state` gives them."""

    values: np.ndarray
    bad: dict[str, list[str]]

    def pack(self) -> bytes:
        """As bytes."""
        buffer = io.BytesIO()
        np.save(buffer, self.values)
        buffer.write(json.dumps(self.bad).encode())
        return buffer.getvalue()

    @classmethod
    def unpack(cls, data: bytes) -> Made:
        """Of such bytes."""
        buffer = io.BytesIO(data)
        return cls(np.load(buffer), json.loads(buffer.read()))


@dataclass(frozen=True)
class Task:
    """What a process must know to do blocks of arrays (`image`, `text`, `codes`). Picklable by Ray."""

    config: EmbedStage
    inputs: Mapping[str, Handle]
    names: Mapping[str, str]
    parts: Parts
    resources: Resources

    def open(self, array: str) -> Work:
        """What does an array's blocks, in a process of its own."""
        return Worker(self, "cuda" if self.resources.gpus else "cpu").work(array)

    @property
    def views(self) -> int:
        """Views of a sample that are stored."""
        return max(1, self.config.views)

    def block(self, array: str) -> int:
        """Captions, or images of whole samples, that are a block."""
        size = self.config.block
        return size if array == "text" else max(1, size // self.views) * self.views

    def pass_name(self, array: str) -> str:
        """Name of an array's parts. Blocks of another size are other parts."""
        return f"{array}-{self.block(array)}"


class Worker:
    """Does blocks in this process. What it needs is loaded when it is first needed."""

    def __init__(self, task: Task, device: str) -> None:
        self.task, self._device = task, torch.device(device)

    def work(self, array: str) -> Work:
        """What does an array's blocks."""
        return lambda block: self._do(array, block).pack()

    @cached_property
    def everything(self) -> Dataset:
        """The whole data set."""
        return Dataset.open(self.task.inputs["data"])

    @cached_property
    def dataset(self) -> Dataset:
        """The samples to embed, each once, as they lie in the shards."""
        found, split = self.everything, self.task.config.split
        if split is not None and "split" in found.columns:
            found = found.where(split=split)
        return found.take(np.unique(found.rows, return_index=True)[1])

    @cached_property
    def encoder(self) -> Encoder:
        """The model on its device."""
        return Encoder(self.task.config, self.task.inputs, self.task.names, self._device)

    @cached_property
    def batches(self) -> Batches:
        """What is encoded."""
        return Batches(self.dataset, self.task.config, self.encoder.preprocess, self.encoder.tokenizer)

    @cached_property
    def distinct(self) -> Distinct:
        """The distinct captions, as who runs the stage has found them."""
        return Distinct.unpack(self.task.parts.get(CAPTIONS, 0))

    @cached_property
    def _tally(self) -> Tally:
        """The bad samples that this process has met: one too many, and it needs no other's to end the stage."""
        return Tally(self.everything.name, len(self.everything), self.task.config.max_bad)

    def _do(self, array: str, block: int) -> Made:
        size, threads = self.task.block(array), self.task.resources.threads
        if array == "text":
            inputs = self.batches.texts(self.distinct.first[block * size :][:size], threads)
        else:
            samples = size // self.task.views
            inputs = self.batches.images(range(len(self.dataset))[block * samples :][:samples], threads)
        made, bad = [], {}
        for batch in inputs:
            made.append(self.encoder(array, batch))
            for _, position, error in batch.bad:
                self._tally.meet(self.dataset, position, error)
                row = str(int(self.dataset.rows[position]))
                bad[row] = self._tally.state()[row]
        return Made(np.concatenate(made), bad)
