"""Does curation's memory grow with the data? How many samples a second, and what does a kill cost?

    python -m benchmarks.curation --data '/data/iconify/iconify-{00000..00095}.tar' --shards 13,25,96

For each number of shards a fresh store: the data are indexed, then curated by operators that look at sizes, captions
and every image (`STEPS`), by one worker in a process of its own, whose greatest resident memory is read when it ends.
What is mapped from files counts in that figure although the system may take it back. At the largest size the curation
is then run once more and killed (SIGKILL) in the middle; submitting again must give the same digest.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.rounds import ROOT, machine, write

STEPS: list[Any] = [
    "dedup",
    {"min_size": {"pixels": 16}},
    {"aspect_ratio": {"max": 3.0}},
    {"text_length": {"max_words": 12}},
    {"boilerplate": {"most": 200}},
    {"near_duplicates": {"bits": 2}},
    {"sample_by": {"column": "style", "share": 0.9}},
]


def recipe(data: str) -> dict[str, Any]:
    """Index, then curate."""
    pool = {"kind": "dataset", "source": data, "split": {"ood_style": None}}
    return {"name": "curation", "stages": {"pool": pool, "chosen": {"kind": "curate", "data": "pool", "steps": STEPS}}}


def child(path: str, store: str, until: str | None) -> None:
    """Curate in this process; print what it took as JSON."""
    from orchestrator import api
    from orchestrator.engine.local import LocalExecutor

    result = api.submit(path, store=store, executor=LocalExecutor(), until=until, quiet=True, tracking=False)
    if until is not None:
        return
    made = result.manifests["chosen"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    facts = {"peak_mib": peak, "seconds": made.wall_s, "digest": made.content_digest, "samples": made.summary["in"]}
    steps = [{name: step[name] for name in ("operator", "in", "kept", "dropped")} for step in made.summary["steps"]]
    print(
        json.dumps({**facts, "kept": made.summary["kept"], "steps": steps, "each_s": made.summary["operator_seconds"]})
    )


def run(path: Path, store: str, kill_after_s: float | None = None) -> dict[str, Any] | None:
    """The child's figures; None where it was killed."""
    command = [sys.executable, "-m", "benchmarks.curation", "--child", str(path), store]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        output, _ = process.communicate(timeout=kill_after_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return None
    if process.returncode:
        raise SystemExit(f"the curation of {path} failed")
    return json.loads(output.splitlines()[-1])


def parts(store: str) -> dict[str, float]:
    """The parts that there are, with when they were written."""
    work = Path(store) / "work"
    return {str(path): path.stat().st_mtime for path in work.glob("*/parts/*/*")}


def index_first(path: Path, store: str) -> None:
    """Index the data, so that only curation is measured."""
    command = [sys.executable, "-m", "benchmarks.curation", "--child", str(path), store, "--until", "pool"]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a pattern of shards, path/name-{00000..00095}.tar")
    parser.add_argument("--shards", default="13,25,96", help="how many of them, by commas")
    parser.add_argument("--work", type=Path, help="folder for stores. Default: a temporary one")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--until", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child, options.until)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        report = measure(options.data, [int(n) for n in options.shards.split(",")], work)
    write(options.json, report | {"command": " ".join(sys.argv), "machine": machine(1)})


def measure(data: str, sizes: list[int], work: Path) -> dict[str, Any]:
    """The curve, then the kill."""
    import yaml

    first, last = data.partition("{")[2].partition("}")[0].split("..")
    curve = []
    path = store = None
    for number in sizes:
        some = data.replace(f"{{{first}..{last}}}", f"{{{first}..{int(first) + number - 1:0{len(first)}d}}}")
        path, store = work / f"{number}.yaml", str(work / f"store-{number}")
        path.write_text(yaml.safe_dump(recipe(some), sort_keys=False))
        index_first(path, store)
        found = run(path, store)
        assert found is not None
        curve.append({"shards": number, **found})
        print(
            f"{number:>4} shards {found['samples']:>9,} samples: peak {found['peak_mib']:,.0f} MiB, "
            f"{found['seconds']:,.0f} s, {found['samples'] / found['seconds']:,.0f} samples/s, kept {found['kept']:,}",
            flush=True,
        )
    for step in curve[-1]["steps"]:
        print(f"       {step['operator']:<16} {step['in']:>9,} -> {step['kept']:>9,}")
    assert path is not None
    again = str(work / "store-killed")
    index_first(path, again)
    run(path, again, kill_after_s=curve[-1]["seconds"] / 2)
    before, started = parts(again), time.time()
    found = run(path, again)
    assert found is not None
    killed = {
        "parts_before": len(before),
        "seconds_after": time.time() - started,
        "same": found["digest"] == curve[-1]["digest"],
    }
    print(
        f"killed halfway: {len(before)} parts were there; the rest took {killed['seconds_after']:.0f} s; "
        f"digest {'equal' if killed['same'] else 'DIFFERENT'}"
    )
    return {"steps": STEPS, "curve": curve, "killed": killed, "date": time.strftime("%Y-%m-%d", time.gmtime())}


if __name__ == "__main__":
    main()
