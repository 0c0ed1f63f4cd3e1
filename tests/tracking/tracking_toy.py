"""A submission of four stages, told to a tracker without an engine, and what MLflow has of it."""

from __future__ import annotations

from typing import ClassVar

from orchestrator.plan.types import Node, Plan, Resources
from orchestrator.recipe.schema import Config, Dataset, Model, Report
from orchestrator.store.artifacts import Manifest
from orchestrator.tracking.tracker import Tracker


class Trains(Config):
    outputs: ClassVar = {"default": Model}
    learning_rate: float = 0.1
    """Learning rate."""


class Curates(Config):
    outputs: ClassVar = {"default": Dataset}


class Judges(Config):
    outputs: ClassVar = {"default": Report}


def node(name: str, kind: str, config: Config) -> Node:
    return Node(name, kind, config, (), Resources(), {}, f"{name}-fingerprint", None)


def manifest(stage: Node, metrics: dict[str, float], **inputs: Node) -> Manifest:
    kinds = {"pairs": "Dataset"}
    return Manifest(
        kind=stage.kind,
        fingerprint=str(stage.fingerprint),
        attempt="a",
        generation=1,
        stage=stage.name,
        run="r",
        payload={},
        inputs={
            path: {
                "artifact": kinds.get(source.name, "Model"),
                "kind": source.kind,
                "fingerprint": source.fingerprint,
                "output": "default",
                "content_digest": f"{source.name}-digest-" + "0" * 64,
                "name": source.name,
            }
            for path, source in inputs.items()
        },
        files={},
        content_digest="d",
        metrics=metrics,
        summary={"samples": 200},
        provenance={},
        started=1.0,
        finished=2.0,
        wall_s=1.0,
    )


PAIRS = node("pairs", "dataset", Curates())
TEACHER = node("teacher", "pretrain", Trains())
SMALL = node("small", "distill", Trains(learning_rate=0.2))
SCORES = node("scores", "evaluate", Judges())
PLAN = Plan("recipe-a", {n.name: n for n in (PAIRS, TEACHER, SMALL, SCORES)}, {"name": "recipe-a"})


def report(samples: int, loss: float) -> dict:
    return {"t": 1000.0 + samples, "type": "report", "samples": samples, "metrics": {"loss": loss}}


def submission(run: str, store: str, *, losses: dict[int, float], cached: bool = False) -> None:
    tracker = Tracker(store)
    tracker.run_started(PLAN, run, {"commit": "abc", "dirty": False})
    for stage, metrics, inputs in (
        (PAIRS, {"pairs": 10.0}, {}),
        (TEACHER, {"parameters": 5.0}, {"data": PAIRS}),
        (SMALL, {"parameters": 2.0, "samples_per_s": 9.0}, {"data": PAIRS, "teacher": TEACHER}),
        (
            SCORES,
            {"small/zeroshot.id.top1": 0.4, "teacher/zeroshot.id.top1": 0.5},
            {"a": TEACHER, "b": SMALL, "d": PAIRS},
        ),
    ):
        if not cached:
            tracker.stage_started(stage)
            if stage is SMALL:
                for samples, loss in losses.items():
                    tracker.stage_event(stage, report(samples, loss))
        tracker.stage_finished(stage, manifest(stage, metrics, **inputs), cached=cached)
    tracker.run_finished(ok=True)


def stage_run(client, fingerprint: str, role: str = "stage"):
    ids = [e.experiment_id for e in client.search_experiments()]
    query = f"tags.`orch.fingerprint` = '{fingerprint}' and tags.`orch.role` = '{role}'"
    return [client.get_run(run.info.run_id) for run in client.search_runs(ids, query)]


def points(client, run, name: str = "loss") -> list[tuple[int, float]]:
    return [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, name)]


def everything(client) -> dict:
    """All that MLflow knows, by names instead of its own ids, in an order of its own."""
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = [client.get_run(r.info.run_id) for r in client.search_runs(experiments)]
    models = client.search_logged_models(experiments)
    names = {r.info.run_id: f"{r.data.tags['orch.role']} {r.info.run_name}" for r in runs}
    names |= {m.model_id: f"model {m.name}" for m in models}

    def named(text: str) -> str:
        for id, name in names.items():
            text = text.replace(id, name)
        return text

    return {
        "runs": sorted(
            (
                names[r.info.run_id],
                r.info.status,
                {k: named(v) for k, v in r.data.tags.items() if k != "orch.run"},
                r.data.params,
                {
                    name: [(p.step, p.value, p.timestamp) for p in client.get_metric_history(r.info.run_id, name)]
                    for name in sorted(r.data.metrics)
                },
                sorted(f"{d.dataset.name} {d.dataset.digest}" for d in r.inputs.dataset_inputs),
                sorted(names[m.model_id] for m in r.inputs.model_inputs or []),
                sorted(names[m.model_id] for m in r.outputs.model_outputs) if r.outputs else [],
            )
            for r in runs
        ),
        "models": sorted(
            (m.name, str(m.status), sorted((x.key, x.value, x.step) for x in m.metrics or []), m.tags) for m in models
        ),
    }
