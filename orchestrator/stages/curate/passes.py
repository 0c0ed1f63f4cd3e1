"""Passes: the operators of a stage cut into stretches, each done block by block.

A stretch is what can be done of a block without knowing of others: it begins with the operator whose knowledge was
just brought together (if any), goes through operators that look at samples one by one, and ends by noting what the
next one wants to know of all (`seen` parts). Between two stretches that knowledge is brought together: fitted, or
compared in groups (groups.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from orchestrator.curation.block import Block
from orchestrator.curation.operator import (
    Arrays,
    ColumnType,
    FittedOperator,
    GroupedOperator,
    Judge,
    OperatorConfig,
    RowOperator,
    Verdict,
)
from orchestrator.data.dataset import Dataset
from orchestrator.data.tables import read_table
from orchestrator.stages.curate.state import State, from_arrow
from orchestrator.stages.curate.tools import StageTools
from orchestrator.store.artifacts import Handle
from orchestrator.store.parts import Parts


@dataclass(frozen=True)
class Stretch:
    """Operators by their places: the one that was fitted or compared, those in between, the one to bring together."""

    number: int
    first: int | None
    between: tuple[int, ...]
    last: int | None


def stretches(steps: Sequence[OperatorConfig]) -> list[Stretch]:
    """The operators of a stage, cut."""
    found: list[Stretch] = []
    first: int | None = None
    between: list[int] = []
    for place, operator in enumerate(steps):
        if isinstance(operator, RowOperator):
            between.append(place)
        else:
            found.append(Stretch(len(found), first, tuple(between), place))
            first, between = place, []
    if first is not None or between or not found:
        found.append(Stretch(len(found), first, tuple(between), None))
    return found


@dataclass(frozen=True)
class Curation:
    """What every process that curates is told. Picklable.

    Attributes:
        names: what each operator is called.
        steps: the operators.
        data: the data set.
        split: which of its samples are curated; None: all.
        tools: of the first operator.
        parts: the stage's place for what is done.
    """

    names: tuple[str, ...]
    steps: tuple[OperatorConfig, ...]
    data: Handle
    split: str | None
    tools: StageTools
    parts: Parts

    @cached_property
    def dataset(self) -> Dataset:
        """The data set, opened once a process."""
        return Dataset.open(self.data)

    @cached_property
    def blocks(self) -> list[tuple[int, int]]:
        """Ranges of rows of its blocks."""
        return self.dataset.blocks()

    @cached_property
    def types(self) -> dict[str, ColumnType]:
        """Columns that operators make, and their types."""
        return {name: type for operator in self.steps for name, type in operator.adds().items()}

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    def tools_of(self, place: int) -> StageTools:
        """The tools of the operator at a place."""
        return replace(self.tools, place=place)

    def state(self, stretch: int, block: int) -> State:
        """A block as a stretch left it; before the first one, -1: as it is in the data set."""
        if stretch < 0:
            return State(Block(*_once(self.apart(block)[0])), [])
        return State.from_bytes(self.parts.get(f"state-{stretch}", block), self.dataset)

    def apart(self, block: int) -> tuple[Dataset, Dataset]:
        """The selected samples of a block: those to curate, and those that stay as they are."""
        data = self.dataset.part(*self.blocks[block])
        if self.split is None:
            return data, data.take([])
        here = data.column("split") == self.split
        return data.take(np.flatnonzero(here)), data.take(np.flatnonzero(~here))


def _once(data: Dataset) -> tuple[Dataset, dict[str, Any], np.ndarray | None]:
    """The samples each once, no columns, and how often each is there (None: all once)."""
    rows, repeats = np.unique(data.rows, return_counts=True)
    return data.at(rows), {}, None if len(rows) == len(data) else repeats.astype(np.uint16)


def open_stretch(curation: Curation, stretch: Stretch) -> Callable[[int], bytes]:
    """Makes a process ready for a stretch; gives what does a block of it."""
    judges = [(place, _judge(curation, place)) for place in stretch.between]
    fitted = curation.steps[stretch.first] if stretch.first is not None else None
    if isinstance(fitted, FittedOperator):
        assert stretch.first is not None
        state = load_arrays(curation.parts.get(f"fitted-{stretch.first}", 0))
        judges.insert(0, (stretch.first, fitted.open(state, curation.tools_of(stretch.first))))
    note = _noter(curation, stretch.last)

    def do(number: int) -> bytes:
        state = curation.state(stretch.number - 1, number)
        if isinstance(fitted, GroupedOperator):
            assert stretch.first is not None
            table, facts = read_table(curation.parts.get(f"verdict-{stretch.first}", number))
            state.apply(curation.names[stretch.first], _verdict(table, facts), 0.0)
        for place, judge in judges:
            started = time.perf_counter()
            verdict = judge(state.block) if len(state.block) else Verdict()
            state.apply(curation.names[place], verdict, time.perf_counter() - started)
        if note is not None:
            curation.parts.put(f"seen-{stretch.last}", number, note(state.block))
        return state.to_bytes(curation.types)

    return do


def _judge(curation: Curation, place: int) -> Judge:
    operator = curation.steps[place]
    assert isinstance(operator, RowOperator)
    return operator.open(curation.tools_of(place))


def _noter(curation: Curation, place: int | None) -> Callable[[Block], bytes] | None:
    """What notes what the operator at a place wants to know of a block."""
    if place is None:
        return None
    operator, tools = curation.steps[place], curation.tools_of(place)
    if isinstance(operator, FittedOperator):
        observe = operator.observe(tools)
        return lambda block: save_arrays(observe(block))
    assert isinstance(operator, GroupedOperator)
    keys = operator.keys(tools)

    def note(block: Block) -> bytes:
        uid = np.ascontiguousarray(block.uid).view(np.uint8).reshape(len(block), 16)
        return save_arrays({**keys(block), "uid": uid, "row": block.data.rows})

    return note


def _verdict(table: Any, facts: dict[str, Any]) -> Verdict:
    """What a comparison said of a block's samples."""
    reasons = np.array(["", *facts["reasons"]], object)[table["reason"].to_numpy()]
    columns = {name: from_arrow(table[name]) for name in table.column_names if name != "reason"}
    return Verdict(reasons, columns, counts=facts["counts"])


def save_arrays(arrays: Arrays) -> bytes:
    """Named arrays as bytes (safetensors: the same bytes for the same arrays)."""
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(values) for name, values in arrays.items()})


def load_arrays(data: bytes) -> dict[str, np.ndarray]:
    """What `save_arrays` gave."""
    from safetensors.numpy import load

    return load(data)
