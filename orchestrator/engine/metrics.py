"""Ray's metrics (Prometheus): an observer that shows what the engine's tailer reads on the cluster's own endpoint.

Every Ray node exposes its processes' metrics; ours are set by the submitting process, so they are found on the node it
is connected to (`MetricsExportPort` of `ray.nodes()`), with Ray's prefix: `ray_orch_train_loss{run=..., stage=...}`.
The names are few and fixed: a figure that has none of its own is `orch_train_metric{name=...}`. Ray drops a run's
series soon after its submission ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge

from orchestrator.engine.observe import Observer, StageStatus
from orchestrator.plan.types import Node

FIGURES = {
    "loss": "Loss, mean since the last report.",
    "logit_scale": "Temperature's inverse, as a factor.",
    "learning_rate": "Learning rate of the last steps.",
    "grad_norm": "Norm of the gradient before clipping.",
    "samples_per_s": "Samples a second, all workers together.",
    "tokens_per_s": "Text tokens a second, all workers together.",
    "data_wait_share": "Share of the time spent waiting for data, 0 to 1.",
    "memory_bytes": "Memory of the first worker: a GPU's peak, else what the process holds.",
    "mfu": "Model-FLOPs utilisation, 0 to 1.",
}
"""Figures of a report (store/events.py) with a metric of their own, `orch_train_<name>`."""
TERM = "loss_"
"""Beginning of a loss term's name in a report."""
ENDS = ("done", "failed", "stopped", "preempted", "crashed")
"""Of stages and of their attempts: `orch_stages_<end>` counts them, by kind."""


class RayMetrics(Observer):
    """Sets gauges from a run's reports and counts how its stages end. Ray must be initialised in this process."""

    def __init__(self, run: str) -> None:
        self._run = run
        own = {name: Gauge(f"orch_train_{name}", text, ("run", "stage")) for name, text in FIGURES.items()}
        self._own: Mapping[str, Gauge] = own
        self._samples = Gauge("orch_train_samples", "Samples seen.", ("run", "stage"))
        self._term = Gauge("orch_train_loss_term", "A term of the loss.", ("run", "stage", "term"))
        self._other = Gauge("orch_train_metric", "Any other figure of a report.", ("run", "stage", "name"))
        self._ends = {end: Counter(f"orch_stages_{end}", f"Stages {end}.", ("run", "kind")) for end in ENDS}
        self._before: dict[str, StageStatus] = {}

    def stage_event(self, node: Node, event: Mapping[str, Any]) -> None:
        if event["type"] != "report":
            return
        tags = {"run": self._run, "stage": node.name}
        self._samples.set(float(event["samples"]), tags)
        for name, value in event["metrics"].items():
            if not math.isfinite(value):
                continue
            if name in self._own:
                self._own[name].set(float(value), tags)
            elif name.startswith(TERM):
                self._term.set(float(value), {**tags, "term": name.removeprefix(TERM)})
            else:
                self._other.set(float(value), {**tags, "name": name})

    def stage_state(self, node: Node, status: StageStatus) -> None:
        before = self._before.get(node.name, StageStatus(node.name, node.kind, node.fingerprint))
        self._before[node.name] = status
        if status.state != before.state and status.state in ENDS:
            self._count(status.state, node)
        if status.preemptions > before.preemptions:
            self._count("preempted", node)
        if status.crashes > before.crashes:
            self._count("crashed", node)

    def _count(self, end: str, node: Node) -> None:
        self._ends[end].inc(1, {"run": self._run, "kind": node.kind})
