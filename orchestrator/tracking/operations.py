"""What each spooled operation does in MLflow: `Delivery` applies a spool's operations in order, from its cursor on.

Each is idempotent, because a crash between the server's answer and our cursor may repeat it, and because several
submissions, also of several machines, may tell of one stage: runs and logged models are looked up by fingerprint
before they are created, and points of a curve at or below the last sample count that the server has are dropped (a
resumed training writes them again). What the server refuses for good is skipped and said.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.tracking import spool

if TYPE_CHECKING:
    from mlflow.entities import Metric

POINTS_EVERY_S = 2.0
"""Points of curves are collected for so long, unless something else comes."""
BATCH = 1000
"""MLflow's limit of metrics in one request."""
OPERATIONS = 2000
"""Taken from the spool at once."""
NOT_NOW = (401, 403, 408, 429)
"""Refusals that may end: credentials are mended, a proxy or a limit gives way."""


class Delivery:
    """One spool on its way: the cursor, and what has been learned of the server's ids."""

    def __init__(self, folder: Path) -> None:
        from mlflow import MlflowClient

        self.folder = folder
        self.header = spool.header(folder)
        state = spool.noted(folder / "cursor.json")  # where it is lost all is told again, which changes nothing
        self.offset: int = state.get("offset", 0)
        self.runs: dict[str, str] = state.get("runs", {})
        self.pointing: dict[str, str] = state.get("pointing", {})
        self.cached: list[dict[str, Any]] = state.get("cached", [])
        self.open: list[str] = state.get("open", [])
        self.client = MlflowClient(tracking_uri=spool.address(self.header))
        self._experiment: str | None = None
        self._points_due = 0.0

    def step(self, everything: bool = True) -> bool:
        """Deliver what is there; True if anything was. Lone points wait a little unless `everything` is to go."""
        found = list(islice(spool.read(self.folder, self.offset), OPERATIONS))
        waits = time.monotonic() < self._points_due and not everything
        if not found or (waits and all(op["op"] == "points" for op, _ in found)):
            return False
        for together, group in groupby(found, key=lambda each: each[0]["op"] == "points"):
            operations = list(group)
            if together:
                self._points([op for op, _ in operations])
                self._points_due = time.monotonic() + POINTS_EVERY_S
                self._save(operations[-1][1])
                continue
            for op, offset in operations:
                with _skipping(op["op"]):
                    getattr(self, f"_{op['op']}")(op)
                self._save(offset)
        return True

    def finished(self) -> bool:
        """Whether everything that will ever come is delivered; runs that a killed submitter left open are ended."""
        closed = (self.folder / "closed").exists()
        if not closed and not spool.is_left(self.folder):
            return False
        if self.step():
            return False
        if not closed:
            for run_id in list(self.open):
                with _skipping("end"):
                    self._terminate(run_id, "KILLED", None)
        return True

    def _save(self, offset: int) -> None:
        self.offset = offset
        names = ("offset", "runs", "pointing", "cached", "open")
        state = {name: getattr(self, name) for name in names}
        spool.replace_file(self.folder / "cursor.json", json.dumps(state))

    @property
    def experiment(self) -> str:
        """Id of the experiment, made if absent."""
        if self._experiment is None:
            found = self.client.get_experiment_by_name(self.header.experiment) or self._new_experiment()
            if found.lifecycle_stage == "deleted":
                self.client.restore_experiment(found.experiment_id)
            self._experiment = found.experiment_id
        return self._experiment

    def _new_experiment(self) -> Any:
        from mlflow.exceptions import MlflowException

        root, name = self.header.artifact_root, self.header.experiment
        try:
            self.client.create_experiment(name, artifact_location=f"{root}/{name}" if root else None)
        except MlflowException as error:  # another machine's was quicker
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        return self.client.get_experiment_by_name(name)

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

    def _unreadable(self, op: dict[str, Any]) -> None:
        print("an operation that cannot be read was skipped", flush=True)

    def _run(self, op: dict[str, Any]) -> None:
        found = self._find_run("orch.run", self.header.run, " and tags.`orch.role` = 'submission'")
        if found is None:
            tags = op["tags"] | {"orch.role": "submission"}
            found = self.client.create_run(self.experiment, start_time=op["t_ms"], tags=tags, run_name=op["name"])
        self._params(found.info.run_id, op["params"])
        self.runs[op["key"]] = found.info.run_id
        self._opened(found.info.run_id)

    def _stage(self, op: dict[str, Any]) -> None:
        """A stage's own run, one whatever the number of attempts and submissions; where another submission's began it,
        a child of ours that points there.
        """
        fingerprint, mine = op["fingerprint"], self.header.run
        own = self._id(op)
        tags = {} if own is None else self.client.get_run(own).data.tags
        if own is None or tags.get("orch.run") == mine:
            own = own or self._create(op, "stage")
            self._params(own, op["params"])
        else:
            self.pointing[fingerprint] = self._pointing(op, own)
        self.runs[fingerprint] = own
        if not op.get("only_pointing") and tags.get("orch.holder", "") <= mine:
            self.client.set_tag(own, "orch.holder", mine)
            if self.client.get_run(own).info.status != "FINISHED":
                self.client.update_run(own, status="RUNNING")
        for run_id in self._both(op):
            self._opened(run_id)

    def _pointing(self, op: dict[str, Any], own: str) -> str:
        mine = f" and tags.`orch.role` = 'pointing' and tags.`orch.run` = '{self.header.run}'"
        found = self._find_run("orch.fingerprint", op["fingerprint"], mine)
        pointing = self._create(op, "pointing") if found is None else found.info.run_id
        self._params(pointing, op["params"])
        self.client.set_tag(pointing, "orch.points_to", own)
        return pointing

    def _create(self, op: dict[str, Any], role: str) -> str:
        tags = op["tags"] | {"orch.role": role}
        if parent := self.runs.get(f"run:{self.header.run}"):
            tags["mlflow.parentRunId"] = parent
        run = self.client.create_run(self.experiment, start_time=op["t_ms"], tags=tags, run_name=op["name"])
        return run.info.run_id

    def _opened(self, run_id: str) -> None:
        if run_id not in self.open:
            self.open.append(run_id)

    def _both(self, op: dict[str, Any]) -> list[str]:
        """A stage's own run and the child of this submission that points to it."""
        own = self._id(op)
        ids = [own] if own else []
        pointing = self.pointing.get(op.get("fingerprint", ""))
        return ids + ([pointing] if pointing else [])

    def _points(self, ops: list[dict[str, Any]]) -> None:
        """Points beyond the last that the server has: it alone knows what others, of other machines too, have told."""
        from mlflow.entities import Metric

        by_run: dict[str, list[dict[str, Any]]] = {}
        for op in ops:
            run_id = self._id(op)
            if run_id is not None:
                by_run.setdefault(run_id, []).append(op)
        for run_id, mine in by_run.items():
            with _skipping("points"):
                shown, metrics = self._shown(run_id), []
                last = {True: {n: m.timestamp for n, m in shown.items()}, False: {n: m.step for n, m in shown.items()}}
                for op in mine:
                    for name, value, samples, t_ms in op["points"]:
                        position = t_ms if op["timed"] else samples
                        if position > last[op["timed"]].get(name, -1):
                            last[op["timed"]][name] = position
                            metrics.append(Metric(name, value, t_ms, t_ms // 1000 if op["timed"] else samples))
                self._log(run_id, metrics)

    def _shown(self, run_id: str) -> dict[str, Metric]:
        """The last point of each of a run's curves: by step, then by time."""
        return {metric.key: metric for metric in self.client.get_run(run_id).data._metric_objs}

    def _final(self, op: dict[str, Any]) -> None:
        for run_id in self._both(op):
            self._latest(run_id, op["metrics"], op["step"], op["t_ms"])

    def _latest(self, run_id: str, metrics: dict[str, float], step: int, t_ms: int) -> None:
        """Log values that the run does not show already; a curve that has a point there keeps it."""
        from mlflow.entities import Metric

        shown = self._shown(run_id)
        fresh = [
            Metric(name, value, t_ms, step)
            for name, value in metrics.items()
            if name not in shown or (shown[name].value != value and (step == 0 or shown[name].step < step))
        ]
        self._log(run_id, fresh)

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
            model = self.client.get_logged_model(made.model_id)
        if model.status != LoggedModelStatus.READY:
            model = self.client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
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

    def _made(self, op: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        for run_id in self._both(op):
            self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in op["tags"].items()])

    def _end(self, op: dict[str, Any]) -> None:
        run_id = self._id(op)
        if run_id is None:
            return
        if op.get("key") and self.cached:
            self.client.log_text(run_id, json.dumps(self.cached, indent=1), "cached_stages.json")
        for ended in dict.fromkeys([run_id, *self._both(op)]):
            self._terminate(ended, op["status"], op["t_ms"])

    def _terminate(self, run_id: str, status: str, t_ms: int | None) -> None:
        """End a run; one that is finished stays so, and one that a later submission has taken up is that one's."""
        run = self.client.get_run(run_id)
        ours = run.data.tags.get("orch.holder", self.header.run) <= self.header.run
        if status == "FINISHED" or (ours and run.info.status != "FINISHED"):
            self.client.set_terminated(run_id, status=status, end_time=t_ms)
        self.open = [open_id for open_id in self.open if open_id != run_id]


@contextmanager
def _skipping(what: str) -> Iterator[None]:
    """Go on where an operation is refused for good; everything else may be better later and is raised."""
    try:
        yield
    except Exception as error:
        if not _is_permanent(error):
            raise
        print(f"{time.strftime('%H:%M:%S')} skipped {what}: {type(error).__name__}: {error}", flush=True)


def _is_permanent(error: Exception) -> bool:
    """Whether the server, having understood, said no (a run that somebody deleted), or an operation has no sense."""
    from mlflow.exceptions import MlflowException, RestException

    if isinstance(error, KeyError | TypeError | AttributeError):
        return True
    if not isinstance(error, MlflowException):
        return False
    said_by_mlflow = isinstance(error, RestException) or "API request" not in str(error)
    code = error.get_http_status_code()
    return said_by_mlflow and 400 <= code < 500 and code not in NOT_NOW
