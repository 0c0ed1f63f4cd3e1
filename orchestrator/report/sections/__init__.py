"""The sections of a page, in its order: title, stage kinds, and the function that says what to show of them.

A function takes the run and its stages of those kinds that have a result or have begun, and yields blocks. It may
meet artifacts whose files are gone: what it raises ends its section with a note, never the page. A new stage kind is
a line here and such a function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module

from orchestrator.report.blocks import Block
from orchestrator.report.record import RunRecord, StageRecord

Show = Callable[[RunRecord, list[StageRecord]], Iterable[Block]]


@dataclass(frozen=True)
class Section:
    """A heading and what follows it. No kinds: all stages."""

    title: str
    kinds: tuple[str, ...]
    target: str

    def load(self) -> Show:
        """Its function."""
        module, _, name = self.target.partition(":")
        return getattr(import_module(f"{__name__}.{module}"), name)


SECTIONS = (
    Section("Results", ("evaluate",), "results:show"),
    Section("Benchmarks", ("benchmark",), "benchmark:show"),
    Section("What the models retrieve", ("evaluate",), "retrieval:show"),
    Section("Training", ("pretrain", "distill", "finetune"), "training:show"),
    Section("Embeddings", ("embed",), "embeddings:show"),
    Section("Data", ("dataset", "materialize"), "data:show"),
    Section("What was dropped, and why", (), "curation:show"),
)
