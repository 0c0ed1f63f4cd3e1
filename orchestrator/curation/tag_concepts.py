"""Concepts: which entries of a list a caption names. What `balance` thins out, and what frequencies are counted by."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from orchestrator.curation.concepts import Matching
from orchestrator.curation.operator import ColumnType, Judge, RowOperator, Tools, Verdict
from orchestrator.recipe.schema import Execution

if TYPE_CHECKING:
    from orchestrator.curation.block import Block

TOLD = 10
"""Concepts of a block that the report counts by name: those that most of its captions name."""


class TagConcepts(RowOperator):
    """Notes the concepts that the primary caption names (column `concepts`: their places in the list, from 0)."""

    columns: ClassVar[tuple[str, ...]] = ("caption",)

    file: Execution[str | None] = None
    """The list: a file of one concept a line (.txt), or a JSON list (.json); a path, or s3://..."""
    concepts: Annotated[list[str], Field(min_length=1)] | None = None
    """Or the list itself."""
    matching: Matching = "words"
    """`words`: whatever the case, in singular or plural; `metaclip`: as MetaCLIP finds its entries, exactly."""

    @field_validator("file")
    @classmethod
    def _absolute(cls, file: str | None) -> str | None:
        """A path means the same on every worker: relative ones are taken from where the recipe is loaded."""
        return file if file is None or "://" in file else os.path.abspath(os.path.expanduser(file))

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.file is None) == (self.concepts is None):
            raise ValueError("tag_concepts needs `file` or `concepts`, one of them")
        if self.file is not None and not self.file.endswith((".txt", ".json")):
            raise ValueError("tag_concepts reads a list from .txt (one concept a line) or .json (a list of strings)")
        return self

    def adds(self) -> Mapping[str, ColumnType]:
        """Concepts of each sample, in rising order."""
        return {"concepts": "list<uint32>"}

    def files(self) -> tuple[str, ...]:
        """The list."""
        return () if self.file is None else (self.file,)

    def open(self, tools: Tools) -> Judge:
        """Builds the automaton."""
        import numpy as np

        from orchestrator.curation.concepts import Finder, read_entries

        entries = self.concepts or read_entries(tools.file(str(self.file)))
        find = Finder(entries, self.matching)

        def judge(block: Block) -> Verdict:
            texts, found = find(block.column("caption").tolist())
            bounds, numbers = np.searchsorted(texts, np.arange(len(block) + 1)).tolist(), found.tolist()
            named = np.bincount(found, minlength=len(entries))
            most = np.argsort(-named, kind="stable")[:TOLD].tolist()
            told = {f"'{entries[place]}', at least": int(named[place]) for place in most if named[place]}
            facts = {"samples with a concept": len(np.unique(texts)), "concepts found": len(found)}
            lists = [numbers[start:stop] for start, stop in pairwise(bounds)]
            return Verdict(columns={"concepts": lists}, counts={**facts, **told})

        return judge
