"""Does TL;DR's quarter of the data train as well as all of them, and better than a random quarter?

    python -m benchmarks.tldr_study --data /data/iconify --study clip --json clip.json
    python -m benchmarks.tldr_study --data ... --study tinyclip --json tinyclip.json

Four arms, three seeds each: `all` the training data, a `random` quarter, TL;DR's quarter (`tldr`: a share of each
cluster of code histograms, and the captioner's caption behind the original), and the same quarter with its original
captions alone (`clusters`), which tells the two halves of the method apart. A seed decides the quarters, the initial
weights and the order. Compared at equal samples seen; the quarters also at equal epochs, as the paper does, with a
quarter of the samples. Everybody is judged on the same held-out drawings: zero-shot classification among the names of
all concepts that are trained on, and retrieval. `clip` trains CLIPs; `tinyclip` distils students from one teacher that
saw all the data, and whose weights they inherit. Captioner (its image tower starts from a CLIP's), codes, captions and
the teacher are made once and not counted; what they took is printed.

All runs are stages of one recipe, which is written into the work folder: submitting again goes on.
"""

from __future__ import annotations

import argparse
import math
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

import orchestrator
from benchmarks.rounds import machine, write
from orchestrator.data import source
from orchestrator.store.artifacts import Store
from orchestrator.store.events import EventReader, curves

ARMS = ("all", "random", "clusters", "tldr")
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t for a two-sided 95% interval of the mean of so many values."""
FIGURES = ("zeroshot.id.top1", "zeroshot.id.top5", "retrieval.id.text_to_image.r1", "retrieval.id.image_to_text.r1")


def command(arguments: list[str]) -> str:
    """The command as others would give it: without this machine's folders."""
    names = [Path(one).name if one.startswith("/") else one for one in arguments]
    return shlex.join(["python", "-m", "benchmarks.tldr_study", *names])


def count_drawings(options: argparse.Namespace, store: Store) -> Path:
    """A table of each sample's key and how many samples are of its concept."""
    place = indexed(options.data, store)
    key, concept = (
        pq.read_table(store.storage.local(f"{place}/{group}.parquet"))[name]
        for group, name in (("source", "key"), ("labels", "concept"))
    )
    samples = pa.table({"key": key, "concept": concept})
    counts = samples.group_by("concept").aggregate([("key", "count")])
    path = options.work.resolve() / "drawings.parquet"
    drawn = samples.join(counts, "concept").select(["key", "key_count"]).rename_columns(["key", "drawings"])
    pq.write_table(drawn.sort_by("key"), path)
    return path


def indexed(data: str, store: Store) -> str:
    """Where the store has the index of some shards."""
    source.prepare(data, store)
    found = source.known(data, store)
    assert found is not None
    return found.place


def recipe(options: argparse.Namespace, drawn: Path) -> dict[str, Any]:
    """The study as a recipe; `drawn` is the table of `count_drawings`."""
    seeds = range(options.seeds)
    captions = {"join": ["original", "generated"]}
    stages: dict[str, Any] = {
        "pairs": {
            "kind": "dataset",
            "source": options.data,
            "split": {"ood_style": None, "unseen": 0.0, "held": options.held},
        },
        "common": {
            "kind": "curate",
            "data": "pairs",
            "steps": [
                {"join": {"file": str(drawn), "by": "key", "take": ["drawings"]}},
                {"threshold": {"column": "drawings", "min": options.least}},
            ],
            "resources": {"cpus": 2},
        },
        "clean": {"kind": "curate", "data": "common", "split": "train", "steps": ["dedup"], "resources": {"cpus": 2}},
        "eyes": {
            "kind": "pretrain",
            "data": "clean",
            "model": "captioner-64x4",
            "samples": options.eyes_samples,
            "resources": {"cpus": 2},
        },
        "captioner": {
            "kind": "pretrain",
            "data": "clean",
            "model": "captioner-64x4",
            "init": {"from": "eyes"},
            "method": {
                "captioner": {"codes": options.codes, "vocabulary": 4096, "beta_weighs": "tokens", "beta": 0.01}
            },
            "samples": options.captioner_samples,
            "learning_rate": 2.0e-3,
            "weight_decay": 0.05,
            "resources": {"cpus": 2},
        },
        "codes": {
            "kind": "embed",
            "model": "captioner",
            "data": "clean",
            "output": "codes",
            "views": 0,
            "resources": {"cpus": 2, "workers": 2},
        },
        "captioned": {
            "kind": "curate",
            "data": "clean",
            "split": "train",
            "steps": [{"cluster": {"features": "codes"}}, {"generate_captions": {"model": "captioner"}}],
            "resources": {"cpus": 2},
        },
    }
    teacher = {}
    if options.study == "tinyclip":
        stages["teacher"] = training("clean", 0, options.teacher_samples, options) | {
            "kind": "pretrain",
            "model": "emoji-96x4",
            "method": "clip",
            "resources": {"cpus": 2},
        }
        teacher = {"kind": "distill", "method": "tinyclip", "teacher": "teacher", "init": {"from": "teacher"}}
    for seed in seeds:
        sample = {"share": options.share, "seed": seed}
        stages[f"random-{seed}"] = {"kind": "curate", "data": "clean", "split": "train", "steps": [{"sample": sample}]}
        select = {"ratio": options.share, "seed": seed}
        steps = [{"select_per_cluster": select}]
        stages[f"tldr-{seed}"] = {"kind": "curate", "data": "captioned", "split": "train", "steps": steps}
    trained = []
    for seed in seeds:
        for arm in ARMS:
            for equal, samples in (("samples", options.samples), ("epochs", round(options.samples * options.share))):
                if arm == "all" and equal == "epochs":
                    continue
                data = {"all": "clean", "random": f"random-{seed}"}.get(arm, f"tldr-{seed}")
                stage = training(data, seed, samples, options) | teacher
                if arm == "tldr":
                    stage["captions"] = captions
                name = f"{arm}-{equal}-{seed}"
                stages[name] = stage
                trained.append(name)
    stages["scores"] = {
        "kind": "evaluate",
        "data": "clean",
        "models": trained,
        "tasks": [
            {"zeroshot": {"splits": ["id"], "max_samples": options.judged}},
            {"retrieval": {"splits": ["id"], "max_samples": options.judged}},
        ],
        "bootstrap": 200,
        "resources": {"cpus": 2},
    }
    return {"name": f"tldr-study-{options.study}", "stages": stages}


def training(data: str, seed: int, samples: int, options: argparse.Namespace) -> dict[str, Any]:
    """One training, less what differs between studies."""
    return {
        "kind": "pretrain",
        "data": data,
        "model": "emoji-64x3",
        "method": "clip",
        "samples": samples,
        "batch": 128,
        "seed": seed,
        "report_every": 50,
        "validation": {"every_samples": options.samples // options.looks, "split": "id", "limit": 1024},
        "resources": {"cpus": 1},
    }


def curve(store: Store, fingerprint: str, metric: str) -> list[tuple[int, float]]:
    """A training's validation figures by samples seen."""
    return curves(EventReader(store.storage, fingerprint).poll()).get(metric, [])


def reaches(points: list[tuple[int, float]], goal: float) -> float | None:
    """Samples at which a curve first reaches a value, between two looks on a straight line; None: never."""
    before = (0, 0.0)
    for samples, value in points:
        if value >= goal:
            low, high = before[1], value
            share = (goal - low) / (high - low) if high > low else 1.0
            return before[0] + share * (samples - before[0])
        before = (samples, value)
    return None


def interval(values: list[float]) -> str:
    """Mean and 95% interval of the mean over seeds."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.4f}"
    half = T_95.get(len(values), 1.96) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.4f} ± {half:.4f}"


def main() -> None:
    """Submit the recipe, print the tables, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="shards, as `source:` of a dataset stage takes them")
    parser.add_argument("--study", choices=("clip", "tinyclip"), default="clip")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=160_000, help="samples seen in a training")
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--held", type=float, default=0.99, help="share of the concepts with a held-out drawing")
    parser.add_argument("--least", type=int, default=24, help="drawings of a concept in the data, for it to take part")
    parser.add_argument("--codes", type=int, default=256)
    parser.add_argument("--eyes-samples", type=int, default=200_000, help="of the CLIP the captioner starts from")
    parser.add_argument("--captioner-samples", type=int, default=600_000)
    parser.add_argument("--teacher-samples", type=int, default=320_000)
    parser.add_argument("--looks", type=int, default=10, help="validations of a training")
    parser.add_argument("--judged", type=int, default=5000, help="held-out samples of the final figures")
    parser.add_argument("--work", type=Path, default=Path("build/tldr-study"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    path = options.work / f"{options.study}.yaml"
    place = str(options.work / "store")
    drawn = count_drawings(options, Store.open(place))
    path.write_text(yaml.safe_dump(recipe(options, drawn), sort_keys=False))

    started = time.time()
    result = orchestrator.submit(str(path), store=place)
    if not result.ok:
        raise SystemExit("the study was stopped; the same command goes on")
    report = figures(result, options) | {
        "command": command(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d", time.gmtime(started)),
        "machine": machine(1),
    }
    write(options.json, report)


def figures(result: Any, options: argparse.Namespace) -> dict[str, Any]:
    """What came of it, printed and as JSON values."""
    store, made = Store.open(result.store), result.manifests
    seeds = range(options.seeds)
    sizes = {name: made[name].metrics["samples_train"] for name in ("clean", "random-0", "tldr-0")}
    judged = made["scores"].metrics
    names = [n for n in made if n.partition("-")[0] in ARMS and made[n].kind in ("pretrain", "distill")]
    runs = {}
    for name in names:
        manifest = made[name]
        points = curve(store, manifest.fingerprint, "val/zeroshot.top5")
        runs[name] = {
            "figures": {figure: judged[f"{name}/{figure}"] for figure in FIGURES},
            "train_s": manifest.summary.get("train_s"),
            "samples": manifest.summary["samples"],
            "epochs": manifest.summary["epochs"],
            "curve": points,
        }
    goal = statistics.mean(runs[f"all-samples-{seed}"]["curve"][-1][1] for seed in seeds)
    print(
        f"\n{options.study}: {sizes['clean']:,.0f} training samples, quarters of {sizes['random-0']:,.0f} and "
        f"{sizes['tldr-0']:,.0f}; {options.seeds} seeds; mean and 95% interval over seeds"
    )
    table: dict[str, Any] = {}
    rows = [(arm, "samples") for arm in ARMS] + [(arm, "epochs") for arm in ARMS[1:]]
    for arm, equal in rows:
        mine = [runs[f"{arm}-{equal}-{seed}"] for seed in seeds]
        row: dict[str, Any] = {f: interval([run["figures"][f] for run in mine]) for f in FIGURES}
        reached = [reaches(run["curve"], goal) for run in mine]
        rate = [run["samples"] / run["train_s"] for run in mine]
        row["samples to the baseline's final top-5"] = reached
        row["seconds to it"] = [None if s is None else s / r for s, r in zip(reached, rate)]
        row["seconds of the training"] = [run["train_s"] for run in mine]
        table[f"{arm}, equal {equal}"] = row
        print(
            f"  {arm:<8} equal {equal:<8}",
            "  ".join(f"{f.split('.', 1)[0][:4]} {f.rpartition('.')[2]} {row[f]}" for f in FIGURES),
        )
        print(
            f"          to the baseline's final val top-5 ({goal:.4f}): "
            + ", ".join("never" if s is None else f"{s:,.0f}" for s in reached)
            + " samples"
        )
    built = {n: made[n].wall_s for n in ("eyes", "captioner", "codes", "captioned", "teacher") if n in made}
    print("  made once, not counted:", ", ".join(f"{name} {seconds:,.0f} s" for name, seconds in built.items()))
    return {"study": options.study, "sizes": sizes, "goal": goal, "table": table, "runs": runs, "made_once_s": built}


if __name__ == "__main__":
    main()
