"""Sets too large for one process: shards made side by side, each a function of its rows alone.

What comes out does not depend on how many processes there are, and a build that was stopped goes on with the shards
that it lacks. Processes are spawned, so that they share nothing by accident, and end with the one that started them
however that ends.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.data.build.shards import bounds, write_shard
from orchestrator.data.children import Spawn, end_with_parent

Task = TypeVar("Task")
Result = TypeVar("Result")

WORK = "unfinished"
"""Folder in that of a build for what is needed until it is done; a build that goes on finds it again."""
FEW = 8
"""Fewer tasks are not worth a second of starting processes."""


def in_order(
    function: Callable[[Task], Result], tasks: Sequence[Task], processes: int | None = None
) -> Iterator[Result]:
    """Results of a picklable function, in the order of the tasks.

    `processes`: one a core by default, and this one alone where there are fewer than `FEW` tasks.
    """
    count = processes or (1 if len(tasks) < FEW else os.cpu_count() or 1)
    if count == 1:
        yield from map(function, tasks)
        return
    with ProcessPoolExecutor(count, mp_context=Spawn(), initializer=end_with_parent) as pool:
        yield from pool.map(function, tasks)


def draw_shards(
    folder: Path,
    prefix: str,
    rows: Sequence[Task],
    draw: Callable[[Task], Mapping[str, bytes] | str],
    largest: int,
    say: Callable[[str], None],
    processes: int | None = None,
) -> dict[str, Any]:
    """Make samples of rows, in their order, and write them into shards; samples, dropped and shards, for `set.json`.

    Args:
        folder: of the build; shards that are finished in it stay as they are.
        rows, draw: a row -> members of its sample, or the reason why there is none. Both are pickled.
        largest: rows a shard.
    """
    (folder / WORK).mkdir(exist_ok=True)
    edges = bounds(len(rows), largest)
    tasks = [
        (folder / f"{prefix}-{k:05d}.tar", start, rows[start:stop])
        for k, (start, stop) in enumerate(itertools.pairwise(edges))
    ]
    shards, dropped = [], Counter[str]()
    for (shard, reasons), stop in zip(in_order(partial(_draw_shard, draw), tasks, processes), edges[1:], strict=True):
        shards.append(shard)
        dropped.update(reasons)
        say(f"{prefix}: {stop:,} of {len(rows):,} drawn")
    return {
        "samples": sum(shard["samples"] for shard in shards),
        "dropped": dict(sorted(dropped.items())),
        "shards": shards,
    }


def _draw_shard(
    draw: Callable[[Task], Mapping[str, bytes] | str], task: tuple[Path, int, Iterable[Task]]
) -> tuple[dict[str, Any], dict[str, int]]:
    """One shard's facts, and how many rows were dropped for which reason; from its receipt where it is finished."""
    path, first_key, rows = task
    receipt = path.parent / WORK / f"{path.name}.json"
    if not receipt.is_file():
        dropped = Counter[str]()
        shard = write_shard(path, _drawn(draw, rows, dropped), first_key)
        half = receipt.with_suffix(".half")
        half.write_text(json.dumps([shard, dropped]), encoding="utf-8")
        half.replace(receipt)
    shard, reasons = json.loads(receipt.read_text(encoding="utf-8"))
    return shard, reasons


def _drawn(
    draw: Callable[[Task], Mapping[str, bytes] | str], rows: Iterable[Task], dropped: Counter[str]
) -> Iterator[Mapping[str, bytes]]:
    for row in rows:
        sample = draw(row)
        if isinstance(sample, str):
            dropped[sample] += 1
        else:
            yield sample
