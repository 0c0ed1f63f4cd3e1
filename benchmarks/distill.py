"""Is our distillation faster than open_clip_train's `--distill-model`, on the same shards, models and batch?

    python -m benchmarks.distill                                       ViT-B/32 teaches ViT-S/32, batch 64
    python -m benchmarks.distill --teacher ViT-S-32 --no-cached        an equal teacher, online only

Compared: samples a second, everything included, after the first steps, of

- open_clip_train with `--distill-model` and `--distill-pretrained`: CLIP's loss plus the distillation loss, the
  teacher run on every batch;
- ours, `distill` with method tinyclip at alpha 0.5, weight 2 and learned scales, which is the same sum of the same
  two losses, the teacher run on every batch;
- ours with the teacher's features read from an `Embeddings` artifact, which an `embed` stage makes once for all views
  that are seen (augmented ones: their seed is kept). Making them is not in the rate, its time is printed: it is what
  the teacher costs the first time, and nothing each time after.

Caveats: teacher and student have random weights (nothing is downloaded), which changes no time but makes the
distillation loss meaningless. See benchmarks/train.py for the rest.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import breakdown, ours, peer, rounds, shards
from orchestrator.models import catalog

METHOD = {"tinyclip": {"alpha": 0.5, "distill_weight": 2.0, "scale": None}}
"""(1 - 0.5) * 2 of CLIP's loss and 0.5 * 2 of the distillation loss: open_clip's DistillClipLoss."""


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-S-32", help="the student: a name of the catalog")
    parser.add_argument("--teacher", default="ViT-B-32", help="a name of the catalog, of the same image size")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=16, help="optimiser steps of each training")
    parser.add_argument("--skip", type=int, default=4, help="first steps that are not counted")
    parser.add_argument("--peer-workers", type=int, default=1, help="open_clip_train's loader processes")
    parser.add_argument("--no-cached", dest="cached", action="store_false", help="leave the cached teacher out")
    parser.add_argument("--profile", action="store_true", help="only say where our time goes")
    rounds.add_arguments(parser)
    shards.add_arguments(parser)
    chosen = parser.parse_args(arguments)
    if chosen.steps < chosen.skip + 2:
        parser.error("--steps must be at least two more than --skip")
    return chosen


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run, print, write; the figures."""
    chosen = options(arguments)
    facts = rounds.machine(chosen.threads)
    paths = shards.build(chosen.shards, chosen.source, chosen.limit)
    bench = ours.Bench(chosen.shards, chosen.work)
    teacher = make_teacher(chosen.teacher, bench.work / "teachers" / chosen.teacher)
    settings = ours.settings(chosen.batch, chosen.steps, chosen.model, teacher=str(teacher), method=METHOD)
    names = {"teacher": str(teacher)}
    online = ours.Training("distill", settings, chosen.threads, names=names, profile=chosen.profile)
    if chosen.profile:
        profile = bench.train(online).facts["profile"]
        breakdown.show(profile, chosen.batch)
        figures = {"machine": facts, "profile": profile}
        rounds.write(chosen.json, figures)
        return figures
    other = opposite(chosen, paths, teacher)
    sides = {"ours": lambda: bench.train(online)}
    if chosen.cached:
        features, facts["embed_s"] = embed(bench, teacher, chosen)
        stored = replace(
            online, stage=settings | {"teacher_features": "features"}, inputs={"teacher_features": features}
        )
        sides["ours, cached teacher"] = lambda: bench.train(stored)
    sides["open_clip_train"] = lambda: peer.train(other, chosen.threads)
    compared = rounds.alternate(sides, chosen.rounds, chosen.skip * chosen.batch, against="open_clip_train")
    title = f"{chosen.teacher} teaches {chosen.model}, batch {chosen.batch}, fp32, {chosen.threads} threads"
    rounds.show(title, compared)
    figures = {"machine": facts, "options": vars(chosen), "sides": compared.summary()}
    rounds.write(chosen.json, figures)
    return figures


def make_teacher(name: str, folder: Path) -> Path:
    """A model with random weights, as a folder that `teacher:` takes, with a file for open_clip_train in it."""
    import torch

    from orchestrator.data.preprocess import Preprocess, Tokenizer
    from orchestrator.models import artifact
    from orchestrator.models.open_clip_bridge import create

    config = catalog.resolve(name)
    model = create(config, seed=1)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(context_length=catalog.context_length(config))
    artifact.save(model, Preprocess(catalog.image_size(config)), tokenizer, folder)
    torch.save(model.network.state_dict(), folder / "open_clip.pt")
    return folder


def embed(bench: ours.Bench, teacher: Path, chosen: argparse.Namespace) -> tuple[tuple[str, str], float]:
    """The teacher's features of one view of each sample, and the seconds it took to make them (0: they were there)."""
    from orchestrator.models.external import identify_external
    from orchestrator.stages.base import ResourceConfig
    from orchestrator.stages.embed.config import EmbedStage

    resources = ResourceConfig(cpus=chosen.threads)
    config = EmbedStage(model=str(teacher), data="pairs", split=None, views=1, resources=resources)
    identity = hashlib.sha256(f"{identify_external(str(teacher))} {bench.data[1]}".encode()).hexdigest()
    started = time.monotonic()
    features = bench.made("embed", config, identity, {"data": bench.data}, {"model": str(teacher)})
    seconds = time.monotonic() - started
    print(f"teacher's features of all samples: {seconds:.1f} s")
    return features, seconds


def opposite(chosen: argparse.Namespace, paths: list[Path], teacher: Path) -> peer.Peer:
    """The same training by open_clip_train."""
    return peer.Peer(
        shards=shards.pattern([path.resolve() for path in paths]),
        model=(chosen.model, catalog.resolve(chosen.model)),
        batch=chosen.batch,
        steps=chosen.steps,
        workers=chosen.peer_workers,
        teacher=(chosen.teacher, catalog.resolve(chosen.teacher), teacher / "open_clip.pt"),
    )


if __name__ == "__main__":
    main()
