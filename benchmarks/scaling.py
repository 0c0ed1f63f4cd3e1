"""What do two workers bring over one?

    python -m benchmarks.scaling                        ViT-S/32 at 224, batch 64
    python -m benchmarks.scaling --model emoji-64x3     the small model, batch 128

Compared: samples a second of the same training (same global batch, same samples, equal losses) as

- one process with one thread;
- one process with two threads;
- two processes with one thread each, gradients and features exchanged over gloo (started by torchrun).

On a machine of two cores the second and third use the same cores: the third over the first says how well the work is
shared, the third over the second what exchanging costs beside threads. Decoding threads share the cores, too.
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks import ours, rounds, shards
from benchmarks.train import BATCH, SMALL_BATCH

ONE = "1 process x 1 thread"
SIDES = {ONE: (1, 1), "1 process x 2 threads": (1, 2), "2 processes x 1 thread": (2, 1)}
"""Name -> processes, threads each."""


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-S-32", help="a name of the catalog")
    parser.add_argument("--batch", type=int, help=f"default: {BATCH['ViT-S-32']}, {SMALL_BATCH} for small models")
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps of each training")
    parser.add_argument("--skip", type=int, default=4, help="first steps that are not counted")
    rounds.add_arguments(parser)
    shards.add_arguments(parser)
    chosen = parser.parse_args(arguments)
    chosen.batch = chosen.batch or BATCH.get(chosen.model, SMALL_BATCH)
    if chosen.steps < chosen.skip + 2:
        parser.error("--steps must be at least two more than --skip")
    return chosen


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run, print, write; the figures."""
    chosen = options(arguments)
    facts = rounds.machine(chosen.threads)
    shards.build(chosen.shards, chosen.source, chosen.limit)
    bench = ours.Bench(chosen.shards, chosen.work)
    settings = ours.settings(chosen.batch, chosen.steps, chosen.model)

    def side(workers: int, threads: int) -> Any:
        return lambda: bench.train(ours.Training("pretrain", settings, threads, workers))

    sides = {name: side(*shape) for name, shape in SIDES.items()}
    compared = rounds.alternate(sides, chosen.rounds, chosen.skip * chosen.batch, against=ONE)
    rounds.show(f"{chosen.model}, global batch {chosen.batch}, fp32", compared)
    figures = {"machine": facts, "options": vars(chosen), "sides": compared.summary()}
    rounds.write(chosen.json, figures)
    return figures


if __name__ == "__main__":
    main()
