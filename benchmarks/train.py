"""Is our training faster than open_clip_train's, on the same shards, model, batch and precision?

    python -m benchmarks.train                      ViT-S/32 at 224, batch 64
    python -m benchmarks.train --model emoji-64x3   the small model, batch 128
    python -m benchmarks.train --profile            where our time goes

Compared: samples a second, everything included, after the first steps. Ours is the worker that stages run, with its
Loader on an indexed Dataset; theirs is `open_clip_train.main` with its webdataset loader (benchmarks/peer.py). Both
have the same number of compute threads; the peer's loader process and our loader's threads come on top on both sides.
Optimiser and schedule are equal, initial weights and order of samples are not, so the loss curves agree in shape: they
begin near ln(batch) and fall alike.

Caveats: captions of a few tokens, as alt texts have, are where cutting the padding pays; with 77-token captions it
would not. A short run sees each sample about once, so our cache of decoded images does not help.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks import breakdown, ours, peer, rounds, shards
from orchestrator.models import catalog

BATCH = {"ViT-S-32": 64}
SMALL_BATCH = 128


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-S-32", help="a name of the catalog")
    parser.add_argument("--batch", type=int, help=f"default: {BATCH['ViT-S-32']}, {SMALL_BATCH} for small models")
    parser.add_argument("--steps", type=int, default=24, help="optimiser steps of each training")
    parser.add_argument("--skip", type=int, default=4, help="first steps that are not counted")
    parser.add_argument("--peer-workers", type=int, default=1, help="open_clip_train's loader processes")
    parser.add_argument("--peer-flag", action="append", default=[], help="further flag of open_clip_train; repeatable")
    parser.add_argument("--profile", action="store_true", help="only say where our time goes")
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
    paths = shards.build(chosen.shards, chosen.source, chosen.limit)
    bench = ours.Bench(chosen.shards, chosen.work)
    settings = ours.settings(chosen.batch, chosen.steps, chosen.model)
    training = ours.Training("pretrain", settings, chosen.threads, profile=chosen.profile)
    if chosen.profile:
        profile = bench.train(training).facts["profile"]
        breakdown.show(profile, chosen.batch)
        figures = {"machine": facts, "profile": profile}
    else:
        other = opposite(chosen, paths)
        compared = rounds.alternate(
            {"ours": lambda: bench.train(training), "open_clip_train": lambda: peer.train(other, chosen.threads)},
            chosen.rounds,
            chosen.skip * chosen.batch,
            against="open_clip_train",
        )
        rounds.show(f"{chosen.model}, batch {chosen.batch}, fp32, {chosen.threads} threads", compared)
        figures = {"machine": facts, "options": vars(chosen), "sides": compared.summary()}
    rounds.write(chosen.json, figures)
    return figures


def opposite(chosen: argparse.Namespace, paths: list[Path]) -> peer.Peer:
    """The same training by open_clip_train."""
    return peer.Peer(
        shards=shards.pattern([path.resolve() for path in paths]),
        model=(chosen.model, catalog.resolve(chosen.model)),
        batch=chosen.batch,
        steps=chosen.steps,
        workers=chosen.peer_workers,
        flags=chosen.peer_flag,
    )


if __name__ == "__main__":
    main()
