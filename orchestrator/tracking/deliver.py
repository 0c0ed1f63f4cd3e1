"""The delivering process: `python -m orchestrator.tracking.deliver` carries spooled operations to MLflow, once each.

It is the only place that imports MLflow for writing. Operations are applied in order; each is idempotent, because a
crash between the server's answer and our cursor may repeat it: runs and logged models are looked up by fingerprint
before they are created, and points of a curve at or below the last delivered sample count are dropped (a resumed
training writes them again, equal). While the server is away it tries again with growing pauses; what is not
delivered in this process's time is delivered by the next one.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.io.home import home
from orchestrator.tracking import spool

if TYPE_CHECKING:
    from mlflow.entities import Metric

IDLE_S = 0.3
"""Pause between looks at an open spool."""
PATIENCE_S = 600.0
"""How long an unreachable server is tried again after the last submitter has ended."""
BATCH = 1000
"""MLflow's limit of metrics in one request."""


class Delivery:
    """One spool on its way: the cursor, and what has been learned of the server's ids."""

    def __init__(self, folder: Path) -> None:
        from mlflow import MlflowClient

        self.folder = folder
        self.header = spool.header(folder)
        cursor = folder / "cursor.json"
        state = json.loads(cursor.read_text()) if cursor.exists() else {}
        self.offset: int = state.get("offset", 0)
        self.runs: dict[str, str] = state.get("runs", {})
        self.pointing: dict[str, str] = state.get("pointing", {})
        self.cached: list[dict[str, Any]] = state.get("cached", [])
        self.open: list[str] = state.get("open", [])
        self.client = MlflowClient(tracking_uri=self.header.tracking_uri)
        self.last_step: dict[tuple[str, str], int] = {}
        self._experiment: str | None = None

    def step(self) -> bool:
        """Deliver what is there; True if anything was."""
        before = self.offset
        points: list[tuple[dict[str, Any], int]] = []
        for op, offset in spool.read(self.folder, self.offset):
            if op["op"] == "points":
                points.append((op, offset))
                if len(points) < 200:
                    continue
            self._points(points)
            points = []
            if op["op"] != "points":
                getattr(self, f"_{op['op']}")(op)
            self._save(offset)
        self._points(points)
        return self.offset > before

    def finished(self) -> bool:
        """Whether everything that will ever come is delivered; runs that a killed submitter left open are ended."""
        if not (self.folder / "closed").exists():
            if self.header.alive() or self.step():
                return False
            for run_id in self.open:
                self.client.set_terminated(run_id, status="KILLED")
        return not self.step()

    def _save(self, offset: int) -> None:
        self.offset = offset
        names = ("offset", "runs", "pointing", "cached", "open")
        state = {name: getattr(self, name) for name in names}
        temporary = self.folder / "cursor.tmp"
        temporary.write_text(json.dumps(state))
        temporary.replace(self.folder / "cursor.json")

    @property
    def experiment(self) -> str:
        """Id of the experiment, made if absent."""
        if self._experiment is None:
            found = self.client.get_experiment_by_name(self.header.experiment)
            if found is None:
                root = self.header.artifact_root
                location = f"{root}/{self.header.experiment}" if root else None
                self._experiment = self.client.create_experiment(self.header.experiment, artifact_location=location)
            else:
                self._experiment = found.experiment_id
        return self._experiment

    def _experiments(self) -> list[str]:
        return [e.experiment_id for e in self.client.search_experiments()] or [self.experiment]

    def _find_run(self, tag: str, value: str, extra: str = "") -> Any | None:
        query = f"tags.`{tag}` = '{value}'{extra}"
        found = self.client.search_runs(
            self._experiments(), query, max_results=1, order_by=["attributes.start_time ASC"]
        )
        return found[0] if found else None

    def _find_model(self, fingerprint: str) -> Any | None:
        query = f"tags.`orch.fingerprint` = '{fingerprint}'"
        found = self.client.search_logged_models(self._experiments(), filter_string=query, max_results=1)
        return found[0] if found else None

    def _id(self, op: dict[str, Any]) -> str | None:
        """The run an operation speaks of; None if MLflow has never heard of it."""
        key = op.get("key") or op["fingerprint"]
        if key not in self.runs and "fingerprint" in op:
            run = self._find_run("orch.fingerprint", key, " and tags.`orch.role` = 'stage'")
            if run is not None:
                self.runs[key] = run.info.run_id
        return self.runs.get(key)

    def _params(self, run_id: str, params: dict[str, Any]) -> None:
        from mlflow.entities import Param

        entities = [Param(key, str(value)) for key, value in params.items()]
        for start in range(0, len(entities), 100):
            self.client.log_batch(run_id, params=entities[start : start + 100])

    def _run(self, op: dict[str, Any]) -> None:
        found = self._find_run("orch.run", self.header.run, " and tags.`orch.role` = 'submission'")
        if found is None:
            tags = op["tags"] | {"orch.role": "submission"}
            found = self.client.create_run(self.experiment, start_time=op["t_ms"], tags=tags, run_name=op["name"])
            self._params(found.info.run_id, op["params"])
        self.runs[op["key"]] = found.info.run_id
        self.open.append(found.info.run_id)

    def _stage(self, op: dict[str, Any]) -> None:
        fingerprint, parent = op["fingerprint"], self.runs[f"run:{self.header.run}"]
        own = self._id(op)
        if own is None:
            own = self._create(op, parent, "stage")
        elif self.client.get_run(own).data.tags.get("orch.run") != self.header.run:
            if fingerprint not in self.pointing:
                pointing = self._create(op, parent, "pointing")
                self.client.set_tag(pointing, "orch.points_to", own)
                self.pointing[fingerprint] = pointing
            if not op.get("only_pointing"):
                self.client.update_run(own, status="RUNNING")
        self.runs[fingerprint] = own
        self.open += [run_id for run_id in self._both(op) if run_id not in self.open]

    def _create(self, op: dict[str, Any], parent: str, role: str) -> str:
        tags = op["tags"] | {"orch.role": role, "mlflow.parentRunId": parent}
        run = self.client.create_run(self.experiment, start_time=op["t_ms"], tags=tags, run_name=op["name"])
        self._params(run.info.run_id, op["params"])
        return run.info.run_id

    def _both(self, op: dict[str, Any]) -> list[str]:
        """A stage's own run and the child of this submission that points to it."""
        own = self._id(op)
        ids = [own] if own else []
        pointing = self.pointing.get(op.get("fingerprint", ""))
        return ids + ([pointing] if pointing else [])

    def _points(self, ops: list[tuple[dict[str, Any], int]]) -> None:
        from mlflow.entities import Metric

        by_run: dict[str, list[Metric]] = {}
        for op, _ in ops:
            run_id = self._id(op)
            if run_id is None:
                continue
            for name, value, samples, t_ms in op["points"]:
                position = t_ms if op["timed"] else samples
                if position > self._last(run_id, name, op["timed"]):
                    step = t_ms // 1000 if op["timed"] else samples
                    by_run.setdefault(run_id, []).append(Metric(name, value, t_ms, step))
                    self.last_step[run_id, name] = position
        for run_id, metrics in by_run.items():
            self._log(run_id, metrics)
        if ops:
            self._save(ops[-1][1])

    def _last(self, run_id: str, name: str, timed: bool) -> int:
        """The last delivered position of one curve, asked of the server the first time."""
        if (run_id, name) not in self.last_step:
            history = self.client.get_metric_history(run_id, name)
            self.last_step[run_id, name] = max((m.timestamp if timed else m.step for m in history), default=-1)
        return self.last_step[run_id, name]

    def _final(self, op: dict[str, Any]) -> None:
        for run_id in self._both(op):
            self._latest(run_id, op["metrics"], op["step"], op["t_ms"])

    def _latest(self, run_id: str, metrics: dict[str, float], step: int, t_ms: int) -> None:
        """Log values that the run does not show already."""
        from mlflow.entities import Metric

        shown = self.client.get_run(run_id).data.metrics
        self._log(run_id, [Metric(n, value, t_ms, step) for n, value in metrics.items() if shown.get(n) != value])

    def _give(self, model_id: str, run_id: str, points: list[Metric]) -> None:
        """Log points of a run for a model too; a run that has the very same point is not given it again by MLflow."""
        from mlflow.entities import Metric

        told = {"model_id": model_id, "run_id": run_id}
        self._log(run_id, [Metric(p.key, p.value, p.timestamp, p.step, **told) for p in points])

    def _log(self, run_id: str, metrics: list[Metric]) -> None:
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + BATCH])

    def _uses(self, op: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput

        datasets = [
            DatasetInput(
                Dataset(name=d["name"], digest=d["digest"], source_type="orch", source=json.dumps(d["source"])),
                [InputTag("mlflow.data.context", d["context"])],
            )
            for d in op["datasets"]
        ]
        found = [self._find_model(fingerprint) for fingerprint in dict.fromkeys(op["models"])]
        models = [LoggedModelInput(model.model_id) for model in found if model is not None]
        if datasets or models:
            for run_id in self._both(op):
                self.client.log_inputs(run_id, datasets=datasets or None, models=models or None)

    def _model(self, op: dict[str, Any]) -> None:
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus

        own = self._id(op)
        if own is None:
            return
        model = self._find_model(op["fingerprint"])
        if model is None:
            made = self.client.create_logged_model(
                experiment_id=self.client.get_run(own).info.experiment_id,
                name=op["name"],
                source_run_id=own,
                tags=op["tags"],
                model_type="orch",
            )
            model = self.client.finalize_logged_model(made.model_id, LoggedModelStatus.READY)
        if not model.metrics:
            self._latest(own, op["metrics"], op["step"], op["t_ms"])
            histories = [self.client.get_metric_history(own, name) for name in op["metrics"]]
            last = [max(points, key=lambda point: (point.step, point.timestamp)) for points in histories]
            self._give(model.model_id, own, last)
        for run_id in self._both(op):
            outputs = self.client.get_run(run_id).outputs
            if not any(m.model_id == model.model_id for m in (outputs.model_outputs if outputs else [])):
                self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, op["step"])])

    def _judged(self, op: dict[str, Any]) -> None:
        from mlflow.entities import Metric

        model = self._find_model(op["fingerprint"])
        for run_id in self._both(op):
            self._latest(run_id, op["metrics"], 0, op["t_ms"])
        if model is not None and model.source_run_id:
            shown = {m.key: m.value for m in (model.metrics or [])}
            fresh = {name: value for name, value in op["metrics"].items() if shown.get(name) != value}
            points = [Metric(name, value, op["t_ms"], 0) for name, value in fresh.items()]
            self._give(model.model_id, model.source_run_id, points)

    def _cached(self, op: dict[str, Any]) -> None:
        row = {"stage": op["stage"], "kind": op["kind"], "fingerprint": op["fingerprint"], **op["metrics"]}
        if row not in self.cached:
            self.cached.append(row)

    def _text(self, op: dict[str, Any]) -> None:
        run_id = self._id(op)
        if run_id is not None:
            self.client.log_text(run_id, op["text"], op["path"])

    def _file(self, op: dict[str, Any]) -> None:
        run_id = self._id(op)
        if run_id is not None and Path(op["path"]).exists():
            self.client.log_artifact(run_id, op["path"])

    def _end(self, op: dict[str, Any]) -> None:
        run_id = self._id(op)
        if run_id is None:
            return
        if op.get("key") and self.cached:
            self.client.log_text(run_id, json.dumps(self.cached, indent=1), "cached_stages.json")
        for ended in dict.fromkeys([run_id, *self._both(op)]):
            self.client.set_terminated(ended, status=op["status"], end_time=op["t_ms"])
            self.open = [open_id for open_id in self.open if open_id != ended]


def deliver(patience_s: float = PATIENCE_S) -> bool:
    """Deliver all spools until every submitter has ended, or the server stays away; True if nothing is left."""
    at_work: dict[Path, Delivery] = {}
    pause, last_success = 1.0, time.monotonic()
    while folders := spool.pending():
        moved = False
        try:
            for folder in folders:
                delivery = at_work.setdefault(folder, Delivery(folder))
                moved = delivery.step() or moved
                if delivery.finished():
                    shutil.rmtree(folder)
                    del at_work[folder]
                    moved = True
            pause, last_success = 1.0, time.monotonic()
        except Exception as error:  # the server's clients raise many types; all mean "not now"
            print(f"{time.strftime('%H:%M:%S')} not delivered yet: {type(error).__name__}: {error}", flush=True)
            at_work.clear()
            if time.monotonic() - last_success > patience_s and not any(spool.header(f).alive() for f in folders):
                return False
            pause = min(pause * 2, 30.0)
            time.sleep(pause)
        if not moved:
            time.sleep(IDLE_S)
    return True


def main() -> int:
    """One delivering process a machine at a time; one more waits for its turn, so that no spool is overlooked."""
    folder = home()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "deliver.next").open("w") as waiting, (folder / "deliver.lock").open("w") as lock:
        try:
            fcntl.flock(waiting, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        fcntl.flock(lock, fcntl.LOCK_EX)
        fcntl.flock(waiting, fcntl.LOCK_UN)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        return 0 if deliver() else 1


if __name__ == "__main__":
    sys.exit(main())
