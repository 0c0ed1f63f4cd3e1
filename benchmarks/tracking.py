"""Does MLflow slow a training down? The same training with its server up, gone, and hanging; then: is all of it told?

    python benchmarks/tracking.py                    4 rounds, about 4 minutes on two cores
    python benchmarks/tracking.py --rounds 1 --steps 10

Each training is a fresh stage of the built-in sample set in a process of its own, run by the engine in that process
(so that tracking shares the training's cores, which is its worst case) and told to MLflow over HTTP. `up` is a real
server; `refused` a port where nobody listens; `hanging` a port that takes connections and never answers. The order
changes every round. Afterwards a server is started where it was missing, what waited is delivered, and every curve is
compared with the events that the training left in its store.

Exits with 1 if a median is more than 5% above that of `up`, or a point is missing or doubled.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "tinyclip_progressive.yaml"
STAGE = "teacher"
CONDITIONS = ("up", "refused", "hanging")
ALLOWED = 1.05
START_S = 180.0


@dataclass(frozen=True)
class Trained:
    """One training: its fingerprint, seconds of the stage, and of its steps from the first report to the last."""

    fingerprint: str
    stage_s: float
    steps_s: float


def train(store: str, steps: int) -> Trained:
    """Train once, anew, in this process; what would deliver to MLflow is ended with it, unless it is done soon."""
    import orchestrator.stages.train.run  # noqa: F401  what takes seconds to import is no part of the comparison
    from orchestrator import api
    from orchestrator.engine.local import LocalExecutor
    from orchestrator.tracking.spool import wait_delivered

    result = api.submit(
        RECIPE,
        store=store,
        overrides=[f"stages.{STAGE}.steps={steps}", f"stages.{STAGE}.report_every=1"],
        until=STAGE,
        rerun=STAGE,
        quiet=True,
        executor=LocalExecutor(os.cpu_count() or 1),
    )
    assert result.ok, result.failed
    manifest = result.manifests[STAGE]
    times = [event["t"] for event in events(store, manifest.fingerprint) if event["type"] == "report"]
    wait_delivered(result.run, 30)
    return Trained(manifest.fingerprint, manifest.wall_s, times[-1] - times[0])


def events(store: str, fingerprint: str) -> list[dict]:
    """What the training told, as its store has it."""
    from orchestrator.store.artifacts import Store
    from orchestrator.store.events import EventReader

    return EventReader(Store.open(store).storage, fingerprint).poll()


def in_a_process(store: Path, home: Path, uri: str, steps: int) -> Trained:
    """`train` in a process of its own; a deliverer that is left waiting for its server is ended with its group."""
    command = [sys.executable, __file__, "--train", str(store), "--steps", str(steps)]
    environment = {**os.environ, "ORCH_HOME": str(home), "MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    finally:
        _end_deliverer(home)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return Trained(**json.loads(done.stdout.splitlines()[-1]))


def _end_deliverer(home: Path) -> None:
    """End the delivering process of a home: the next rounds must not share the machine with it."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        if "orchestrator.tracking.deliver" in (process.info["cmdline"] or []):
            try:
                if process.environ().get("ORCH_HOME") == str(home):
                    process.kill()
            except psutil.Error:
                continue


def free_port() -> int:
    """A port of the loopback address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def server(port: int, folder: Path) -> Iterator[str]:
    """MLflow's server on a SQLite file in `folder`."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--workers", "1"],
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )
    try:
        deadline = time.monotonic() + START_S
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                    break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"MLflow's server did not start\n{(folder / 'server.log').read_text()[-3000:]}")
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(20)


@contextmanager
def as_is(condition: str, port: int) -> Iterator[None]:
    """While inside, a port that hangs where that is the condition; else nobody listens there."""
    with socket.socket() as hanging:
        if condition == "hanging":
            hanging.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            hanging.bind(("127.0.0.1", port))
            hanging.listen(64)
        yield


def measure(folder: Path, rounds: int, steps: int, missing: int) -> dict[str, list[Trained]]:
    """Trainings by condition; `missing` is the port of the server that is not there."""
    found: dict[str, list[Trained]] = {condition: [] for condition in CONDITIONS}
    with server(free_port(), folder) as up:
        in_a_process(folder / "store", folder / "up", up, 2)  # the data set, and the first of everything
        for number in range(rounds):
            for condition in CONDITIONS[number % 3 :] + CONDITIONS[: number % 3]:
                uri = up if condition == "up" else f"http://127.0.0.1:{missing}"
                with as_is(condition, missing):
                    trained = in_a_process(folder / "store", folder / condition, uri, steps)
                found[condition].append(trained)
                figures = f"stage {trained.stage_s:6.2f} s  steps {trained.steps_s:6.2f} s"
                print(f"round {number + 1} {condition:<8} {figures}", flush=True)
    return found


def deliver_rest(folder: Path, missing: int) -> dict[str, float]:
    """Start the server that was missing and deliver what waits; seconds that took, by condition."""
    took = {}
    with server(missing, folder):
        for condition in CONDITIONS[1:]:
            started = time.monotonic()
            environment = {**os.environ, "ORCH_HOME": str(folder / condition), "PYTHONPATH": str(ROOT)}
            command = [sys.executable, "-m", "orchestrator.tracking.deliver"]
            subprocess.run(command, env=environment, cwd=ROOT, check=True)
            took[condition] = time.monotonic() - started
    return took


def compare(folder: Path, trainings: Sequence[Trained]) -> tuple[int, list[str]]:
    """Points that MLflow has of these trainings, and what is wrong with them."""
    from mlflow import MlflowClient

    from orchestrator.store.events import curves

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    count, wrong = 0, []
    for trained in trainings:
        query = f"tags.`orch.fingerprint` = '{trained.fingerprint}' and tags.`orch.role` = 'stage'"
        runs = client.search_runs(experiments, query)
        if len(runs) != 1:
            wrong.append(f"{trained.fingerprint[:12]} has {len(runs)} runs")
            continue
        for name, curve in curves(events(str(folder / "store"), trained.fingerprint)).items():
            points = sorted((p.step, p.value) for p in client.get_metric_history(runs[0].info.run_id, name))
            count += len(points)
            if points != curve:
                wrong.append(f"{trained.fingerprint[:12]} {name}: {len(points)} points for {len(curve)}")
    return count, wrong


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--train", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        print(json.dumps(train(options.train, options.steps).__dict__))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    with tempfile.TemporaryDirectory(prefix="orch-tracking-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        missing = free_port()
        found = measure(folder, options.rounds, options.steps, missing)
        took = deliver_rest(folder, missing)
        told = {condition: compare(folder, found[condition]) for condition in CONDITIONS}
    return _print(found, took, told)


def _print(found: dict[str, list[Trained]], took: dict[str, float], told: dict[str, tuple[int, list[str]]]) -> int:
    base = statistics.median(trained.stage_s for trained in found["up"])
    steps_base = statistics.median(trained.steps_s for trained in found["up"])
    head = f"{'MLflow':<10}{'stage, median':>15}{'ratio':>8}{'steps':>10}{'ratio':>8}"
    print("", head + f"{'delivery after':>16}{'points':>9}", sep="\n")
    good = True
    for condition, trainings in found.items():
        stage_s = statistics.median(trained.stage_s for trained in trainings)
        steps_s = statistics.median(trained.steps_s for trained in trainings)
        count, wrong = told[condition]
        later = f"{took[condition]:.1f} s" if condition in took else "meanwhile"
        row = f"{condition:<10}{stage_s:>13.2f} s{stage_s / base:>8.3f}{steps_s:>8.2f} s{steps_s / steps_base:>8.3f}"
        print(f"{row}{later:>16}{count:>9}")
        for line in wrong:
            print(f"  {line}")
        good = good and not wrong and stage_s <= ALLOWED * base
    print("holds: no slower than 5%, every point told once" if good else "DOES NOT HOLD")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
