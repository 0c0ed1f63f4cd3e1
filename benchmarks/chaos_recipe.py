"""The demo recipe as the chaos benchmark sees it: a command typed as often as it takes, the processes it leads to, and
what it made: content digests, and the curves that MLflow has been told.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.rounds import ROOT
from orchestrator.engine import cluster
from orchestrator.errors import OrchError
from orchestrator.store.artifacts import Store
from orchestrator.store.events import EventReader, curves
from orchestrator.store.runs import find_run

RECIPE = ROOT / "recipes" / "tinyclip_progressive.yaml"
STEPS = {"teacher": 500, "mid": 120, "small": 140, "scratch": 140}
SEVERAL = "small"
"""The stage that has two workers."""
RUN_S, DELIVERY_S = 900.0, 120.0


@dataclass(frozen=True)
class Reference:
    """The undisturbed run: seconds, content digest of each stage, fingerprint and loss curve of each training."""

    wall_s: float
    digests: dict[str, str]
    fingerprints: dict[str, str]
    losses: dict[str, list[tuple[int, float]]]


class Recipe:
    """The demo recipe in one store, submitted as often as it takes."""

    def __init__(self, folder: Path, home: Path, store: str, scale: float, tracking: str) -> None:
        self.store_url, self.home, self._folder = store, home, folder
        own = {"ORCH_HOME": str(home), "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": tracking, "COLUMNS": "140"}
        self.environment = {**os.environ, **own}
        changed = {f"{stage}.steps": max(5, round(steps * scale)) for stage, steps in STEPS.items()}
        for stage in STEPS:
            changed |= {f"{stage}.report_every": 2, f"{stage}.checkpoint_every": 4}
        changed |= {f"{SEVERAL}.resources.workers": 2}
        settings = [word for name, value in changed.items() for word in ("-s", f"stages.{name}={value}")]
        self.arguments = [str(RECIPE), *settings, "--store", store]
        self.submitter: subprocess.Popen[bytes] | None = None
        self._readers: dict[str, EventReader] = {}

    def submit(self, *more: str) -> subprocess.Popen[bytes]:
        """Type the command."""
        with (self._folder / "submit.log").open("ab") as log:
            self.submitter = subprocess.Popen(
                [sys.executable, "-m", "orchestrator", "submit", *self.arguments, *more],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=self.environment,
            )
        return self.submitter

    def log(self) -> str:
        """The end of what the commands said."""
        return (self._folder / "submit.log").read_text(errors="replace")[-4000:]

    def stages(self) -> dict[str, dict[str, Any]]:
        """Each stage's status in the present submission; {} while that has not begun."""
        try:
            state = find_run(Store.open(self.store_url)).state()
        except OrchError:
            return {}
        mine = self.submitter is not None and state.get("pid") == self.submitter.pid
        return state["stages"] if mine else {}

    def events(self, fingerprint: str) -> Iterable[tuple[int, dict[str, Any]]]:
        """(generation, event) that came since the last call."""
        if fingerprint not in self._readers:
            self._readers[fingerprint] = EventReader(Store.open(self.store_url).storage, fingerprint)
        return self._readers[fingerprint].numbered()

    def processes(self, victim: str, running: Iterable[str]) -> list[tuple[psutil.Process, str]]:
        """Those of that kind, each with the stage it works for ("" where that is all of them)."""
        if victim == "submitter":
            return [(psutil.Process(self.submitter.pid), "")] if self.submitter is not None else []
        if victim == "deliverer":
            return [(p, "") for p in processes_of(self.home) if "orchestrator.tracking.deliver" in title(p)]
        found = cluster.recorded(self.home)
        if found is None:
            return []
        with suppress(psutil.Error):
            supervisor = psutil.Process(found.pid)
            family = supervisor.children(recursive=True)
            if victim == "supervisor":
                return [(supervisor, "")]
            if victim in ("raylet", "gcs"):
                name = {"raylet": "raylet", "gcs": "gcs_server"}[victim]
                return [(p, "") for p in family if p.name() == name]
            titles = {"controller": ["ray::TrainController"], "rank": ["ray::RayTrainWorker"]}
            names = dict.fromkeys(titles.get(victim, []), SEVERAL) or {f"ray::{s}": s for s in running}
            return [(p, s) for p in family for name, s in names.items() if title(p).startswith(name)]
        return []


def title(process: psutil.Process) -> str:
    """Its command line; "" if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def processes_of(home: Path) -> list[psutil.Process]:
    """The processes that run with this ORCH_HOME."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("ORCH_HOME") == str(home):
                found.append(process)
    return found


def undisturbed(recipe: Recipe) -> Reference:
    """Run the recipe to its end on a cluster that is up; RuntimeError if it fails."""
    if recipe.submit("--until", "clean").wait(RUN_S):
        raise RuntimeError(f"the recipe fails undisturbed:\n{recipe.log()}")
    began = time.monotonic()
    if recipe.submit().wait(RUN_S):
        raise RuntimeError(f"the recipe fails undisturbed:\n{recipe.log()}")
    wall_s = time.monotonic() - began
    stages = recipe.stages()
    prints = {name: stages[name]["fingerprint"] for name in STEPS}
    losses = {name: curves(event for _, event in recipe.events(print_))["loss"] for name, print_ in prints.items()}
    return Reference(wall_s, digests(recipe), prints, losses)


def digests(recipe: Recipe) -> dict[str, str]:
    """Each stage's content digest."""
    store = Store.open(recipe.store_url)
    found = {n: store.find(s["kind"], s["fingerprint"]) for n, s in recipe.stages().items()}
    return {name: manifest.content_digest for name, manifest in found.items() if manifest is not None}


def wrong_curves(recipe: Recipe, reference: Reference, tracking: str) -> list[str]:
    """What MLflow's loss curves lack or have twice, after everything has been delivered."""
    from mlflow import MlflowClient

    spool = recipe.home / "spool"
    deadline = time.monotonic() + DELIVERY_S
    while spool.exists() and any(spool.iterdir()):
        if not recipe.processes("deliverer", []):
            recipe.submit().wait(RUN_S)  # everything is there: it only delivers
        if time.monotonic() > deadline:
            return ["not everything was delivered"]
        time.sleep(0.5)
    client, wrong = MlflowClient(tracking_uri=tracking), []
    experiments = [each.experiment_id for each in client.search_experiments()]
    for stage, expected in reference.losses.items():
        query = f"tags.`orch.fingerprint` = '{reference.fingerprints[stage]}' and tags.`orch.role` = 'stage'"
        runs = client.search_runs(experiments, query)
        if len(runs) != 1:
            wrong.append(f"{stage}: {len(runs)} runs")
            continue
        points = [(metric.step, metric.value) for metric in client.get_metric_history(runs[0].info.run_id, "loss")]
        if sorted(points) != expected:
            wrong.append(f"{stage}: {len(points)} points of {len(expected)}, {len(set(points))} different")
    return wrong
