"""Kills processes at random under the demo recipe: does every run finish, with the same weights, and at what cost?

    python -m benchmarks.chaos --kills 50 --seed 1 --json chaos.json

The recipe is run undisturbed, then again and again, each time in a fresh store with its own MLflow server, while
processes are killed (SIGKILL) at random times: the command itself, the worker of a stage, Ray Train's controller and
a rank (`small` has two workers), the local cluster's raylet, GCS server and supervisor, the S3 server and MLflow's
(both back after a few seconds), and the process that delivers to MLflow. Where the command ends, it is typed again.
Which processes and when is drawn from the seed; on which step that falls is up to the machine. Work goes on when every
stage that was hit has made progress in an attempt that began after the kill (with a server: any progress).
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks import chaos_servers as servers
from benchmarks.chaos_recipe import RUN_S, Recipe, digests, processes_of, title, undisturbed, wrong_curves
from benchmarks.rounds import ROOT, machine, write

VICTIMS = ("submitter", "worker", "controller", "rank", "raylet", "gcs", "supervisor", "s3", "mlflow", "deliverer")
OF_ALL = ("submitter", "raylet", "gcs", "supervisor")
"""Whose death ends every running stage's attempt."""
OF_NONE = ("s3", "mlflow", "deliverer")
"""Whose death ends no attempt."""
SERVERS = ("s3", "mlflow")
FOREIGN = ("RAY_", "ORCH_", "MLFLOW_", "AWS_")
DELAY_S, AWAY_S = (0.5, 6.0), (2.0, 8.0)
"""From the moment that work goes on to the next kill; how long a killed server stays away."""
MAX_SUBMISSIONS = 12


@dataclass
class Kill:
    """One kill: of what, when (Unix seconds), which generation each stage that it hit was at, and what came of it."""

    victim: str
    t: float
    stage: str
    hit: dict[str, int]
    any_attempt: bool
    back_s: float | None = None
    """Until work went on."""
    submitted_again: bool = False


@dataclass
class Outcome:
    """A run that was disturbed."""

    seed: str
    kills: list[Kill] = field(default_factory=list)
    wall_s: float = 0.0
    submissions: int = 0
    different: list[str] = field(default_factory=list)
    """Stages whose content digest is not the undisturbed run's."""
    curves: list[str] = field(default_factory=list)
    """What is wrong with MLflow's curves."""


class Chaos:
    """The kills of one run."""

    def __init__(self, recipe: Recipe, of: dict[str, servers.Server], outcome: Outcome) -> None:
        self.recipe, self.servers, self.outcome = recipe, of, outcome
        self._draw = random.Random(outcome.seed)
        self._pending: Kill | None = None
        self._back: list[tuple[float, str]] = []
        self._next = 0.0
        self._ready_since: float | None = None

    def run(self, hand: list[str]) -> None:
        """Run the recipe to its end, killing what `hand` names; kinds that were used up leave it."""
        began = time.monotonic()
        self._submit()
        while (code := self._submitter().poll()) != 0:
            if time.monotonic() - began > RUN_S or self.outcome.submissions > MAX_SUBMISSIONS:
                raise RuntimeError(f"the run does not finish:\n{self.recipe.log()}")
            if code is not None:
                if self.outcome.kills:
                    self.outcome.kills[-1].submitted_again = True
                self._submit()
            self._return_servers()
            if not self._back:
                self._look(hand)
            time.sleep(0.1)
        self.outcome.wall_s = time.monotonic() - began
        self._return_servers(all_of_them=True)
        if self._pending is not None:
            self._goes_on(time.time())

    def _submitter(self) -> subprocess.Popen[bytes]:
        assert self.recipe.submitter is not None
        return self.recipe.submitter

    def _submit(self) -> None:
        self.recipe.submit()
        self.outcome.submissions += 1

    def _return_servers(self, all_of_them: bool = False) -> None:
        for at, name in list(self._back):
            if all_of_them or time.time() >= at:
                self.servers[name].start()
                self._back.remove((at, name))

    def _look(self, hand: list[str]) -> None:
        stages = self.recipe.stages()
        if self._pending is not None:
            self._see_whether_it_goes_on(stages)
        running = {name: each["generation"] for name, each in stages.items() if each["state"] == "running"}
        if self._pending is not None or not running or not hand:
            self._ready_since = None
            return
        if self._ready_since is None:
            self._ready_since, self._next = time.monotonic(), time.monotonic() + self._draw.uniform(*DELAY_S)
        if time.monotonic() >= self._next:
            self._kill(hand, running)

    def _kill(self, hand: list[str], running: dict[str, int]) -> None:
        """Kill the next of the hand that is there; the rarest, which only live with one stage, first."""
        for victim in sorted(hand, key=lambda v: v not in ("controller", "rank")):
            if victim in SERVERS:
                self.servers[victim].kill()
                self._back.append((time.time() + self._draw.uniform(*AWAY_S), victim))
                stage = ""
            else:
                found = self.recipe.processes(victim, running)
                if not found:
                    continue
                process, stage = self._draw.choice(found)
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            hit = {stage: running[stage]} if stage in running else dict(running)
            kill = Kill(victim, time.time(), stage or "+".join(running), hit, victim in OF_NONE)
            self.outcome.kills.append(kill)
            self._pending = kill
            hand.remove(victim)
            return

    def _see_whether_it_goes_on(self, stages: dict[str, dict[str, Any]]) -> None:
        kill = self._pending
        assert kill is not None
        for name in [name for name in kill.hit if name in stages]:
            status, since = stages[name], kill.hit[name]
            went_on = [
                event["t"]
                for generation, event in self.recipe.events(status["fingerprint"])
                if event["type"] in ("report", "progress") and (kill.any_attempt or generation > since)
            ]
            ended = status["state"] in ("done", "cached")
            went_on += [status["finished"]] if ended else []
            if later := [t for t in went_on if t > kill.t]:
                del kill.hit[name]
                kill.back_s = max(kill.back_s or 0.0, later[0] - kill.t)
            elif ended:  # before the kill
                del kill.hit[name]
        if not kill.hit:
            self._goes_on(kill.t + (kill.back_s or 0.0))

    def _goes_on(self, t: float) -> None:
        kill = self._pending
        assert kill is not None
        kill.back_s, self._pending = t - kill.t, None
        again = ", submitted again" if kill.submitted_again else ""
        print(f"  {kill.victim:<11}at work: {kill.stage:<24}goes on after {kill.back_s:5.1f} s{again}", flush=True)


def hands(kills: int, a_run: int, victims: Iterable[str], draw: random.Random) -> list[list[str]]:
    """Which kinds of process each run is to lose: kinds as even as can be, in random order."""
    deck: list[str] = []
    while len(deck) < kills:
        deck += draw.sample(list(victims), len(list(victims)))
    return [deck[start : min(start + a_run, kills)] for start in range(0, kills, a_run)]


def per_victim(kills: list[Kill]) -> dict[str, dict[str, float]]:
    """By kind of process: kills, those after which nothing had to be typed, median and worst seconds."""
    rows = {}
    for victim in VICTIMS:
        mine = [kill for kill in kills if kill.victim == victim]
        back = [kill.back_s for kill in mine if kill.back_s is not None]
        if back:
            by_itself = sum(not kill.submitted_again for kill in mine)
            rows[victim] = {
                "kills": len(mine),
                "by_itself": by_itself,
                "median_s": statistics.median(back),
                "worst_s": max(back),
            }
    return rows


def show(rows: dict[str, dict[str, float]]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="seconds from the kill until work goes on", title_justify="left")
    for name in ("killed", "times", "without submitting again", "median", "worst"):
        table.add_column(name, justify="left" if name == "killed" else "right")
    for victim, row in rows.items():
        figures = (f"{row['kills']}", f"{row['by_itself']}", f"{row['median_s']:.1f}", f"{row['worst_s']:.1f}")
        table.add_row(victim, *figures)
    Console(width=None if sys.stdout.isatty() else 119).print(table)


def main() -> None:
    """Run, print, write; exit code 1 if a run differs or leaves something behind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--kills-a-run", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", choices=("local", "s3"), default="s3")
    parser.add_argument("--scale", type=float, default=0.2, help="share of the recipe's steps")
    parser.add_argument("--victims", default=",".join(VICTIMS), help="kinds of process to kill, by commas")
    parser.add_argument("--work", type=Path, default=Path("build/chaos"), help="folder for stores and logs; emptied")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    work = options.work.absolute()
    work.mkdir(parents=True)
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        del os.environ[name]
    of: dict[str, servers.Server] = {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing of ours is left running
    try:
        if options.store == "s3":
            of["s3"] = servers.s3(work / "s3")
            of["s3"].start()
            os.environ.update(servers.s3_environment(of["s3"].url))
        report = kill_and_compare(options, work, of)
    finally:
        left = end(work, of)
    report |= {"left_behind": left, "command": " ".join(sys.argv), "machine": machine(1)}
    write(options.json, report)
    if left:
        print("left behind:", *left, sep="\n  ")
    sys.exit(0 if report["right"] and not left else 1)


def kill_and_compare(options: argparse.Namespace, work: Path, of: dict[str, servers.Server]) -> dict[str, Any]:
    """The undisturbed run, the others, and what came of it."""

    def recipe(name: str) -> Recipe:
        folder = work / name
        of["mlflow"] = servers.mlflow(folder / "mlflow")
        of["mlflow"].start()
        store = f"s3://{servers.BUCKET}/{name}" if options.store == "s3" else str(folder / "store")
        return Recipe(folder, work / "home", store, options.scale, of["mlflow"].url)

    print(f"seed {options.seed}; undisturbed run ...", flush=True)
    first = recipe("undisturbed")
    reference = undisturbed(first)
    wrong = wrong_curves(first, reference, of["mlflow"].url)
    of["mlflow"].kill()
    print(f"undisturbed: {reference.wall_s:.1f} s {'; '.join(wrong)}", flush=True)
    victims = [v for v in options.victims.split(",") if v != "s3" or options.store == "s3"]
    outcomes: list[Outcome] = []
    waiting = hands(options.kills, options.kills_a_run, victims, random.Random(options.seed))
    while waiting:
        hand = waiting.pop(0)
        number = len(outcomes) + 1
        outcome = Outcome(seed=f"{options.seed}-{number}")
        outcomes.append(outcome)
        print(f"run {number}, seed {outcome.seed}: {', '.join(hand)}", flush=True)
        disturbed = recipe(f"run-{number}")
        Chaos(disturbed, of, outcome).run(hand)
        ends = digests(disturbed)
        outcome.different = [name for name in reference.digests if ends.get(name) != reference.digests[name]]
        outcome.curves = wrong_curves(disturbed, reference, of["mlflow"].url)
        of["mlflow"].kill()
        print(
            f"  finished in {outcome.wall_s:.1f} s with {outcome.submissions} submissions; digests "
            f"{'equal' if not outcome.different else 'DIFFERENT: ' + ', '.join(outcome.different)}; "
            f"curves {'whole' if not outcome.curves else 'WRONG: ' + '; '.join(outcome.curves)}",
            flush=True,
        )
        if hand:  # its processes did not come to be: another run is to lose them
            waiting.append(hand)
    kills = [kill for outcome in outcomes for kill in outcome.kills]
    lost_s = (sum(o.wall_s for o in outcomes) - len(outcomes) * reference.wall_s) / max(1, len(kills))
    rows = per_victim(kills)
    show(rows)
    right = not any(o.different or o.curves for o in outcomes) and not wrong
    print(f"{len(kills)} kills in {len(outcomes)} runs; {lost_s:.1f} s lost a kill; all equal: {right}", flush=True)
    return {
        "seed": options.seed,
        "undisturbed": asdict(reference),
        "runs": [asdict(outcome) for outcome in outcomes],
        "victims": rows,
        "lost_s_per_kill": lost_s,
        "right": right,
    }


def end(work: Path, of: dict[str, servers.Server]) -> list[str]:
    """Stop the cluster and the servers; what of ours still runs after a while."""
    home = work / "home"
    subprocess.run(
        [sys.executable, "-m", "orchestrator", "cluster", "down"],
        env={**os.environ, "ORCH_HOME": str(home), "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    for server in of.values():
        server.kill()
    deadline = time.monotonic() + 20
    while (left := processes_of(home)) and time.monotonic() < deadline:
        time.sleep(0.5)
    names = [f"{process.pid} {title(process)[:100]}" for process in left]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return names


if __name__ == "__main__":
    main()
