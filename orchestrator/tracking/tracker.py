"""What a run means in MLflow: an observer of the engine that turns its events into spool operations.

One run a submission, one child run a stage. A stage's own run is keyed by its fingerprint and belongs to the
submission that began it; a later submission that reuses or resumes it gets a child that points there (operations.py).
A stage's metrics named `<input>/<metric>` are about that input: they are also written, as `<metric>`, to the run
and the logged model that made it, so that comparing models needs no set-up. Points of the curves are keyed by
samples seen.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.store import lineage
from orchestrator.store.lineage import SOURCE
from orchestrator.store.process import this_process
from orchestrator.tracking.spool import Header, Spool, artifact_root, is_delivering, start_delivery, tracking_uri

if TYPE_CHECKING:
    from orchestrator.plan.types import Node, Plan
    from orchestrator.recipe.schema import Config
    from orchestrator.store.artifacts import Manifest

LOOK_EVERY_S = 30.0
"""How often it is looked whether somebody delivers."""
MADE_BY = {"mlflow.source.name": "orch", "mlflow.source.type": "LOCAL"}
"""Without a name of the source MLflow's page does not show its commit."""
MAX_DIGEST = 36
"""MLflow's limit for a data set's digest, in characters."""
MAX_TAG = 5000
"""And for a tag's value."""


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one level of dotted names; None and empty containers are left out."""
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
        items = enumerate(value)
    elif value is None or value in ([], {}, ()):
        return {}
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat.update(flatten(item, f"{prefix}.{key}" if prefix else str(key)))
    return flat


class Tracker:
    """Writes one submission's spool. Its methods are the engine's observer hooks; none of them raises or waits."""

    def __init__(self, store_url: str) -> None:
        self.store_url = store_url
        self.spool: Spool | None = None
        self.run = ""
        self._deliverer: subprocess.Popen[bytes] | None = None
        self._next_look = 0.0

    def run_started(self, plan: Plan, run: str, provenance: Mapping[str, Any] | None = None) -> None:
        """The submission's own run, with the resolved recipe."""
        import yaml

        self.run = run
        uri = tracking_uri(self.store_url)
        root = artifact_root(self.store_url) if uri.startswith("sqlite:") else None
        self.spool = Spool(Header(run, uri, plan.name, root, this_process().record()))
        facts = provenance or {}
        tags = {**MADE_BY, "orch.run": run, "orch.store": self.store_url}
        if facts.get("commit"):
            tags |= {"mlflow.source.git.commit": facts["commit"], "orch.dirty": str(bool(facts.get("dirty"))).lower()}
        params = {"stages": len(plan.nodes), "recipe": plan.name}
        self.spool.append("run", key=f"run:{run}", name=run, tags=tags, params=params, t_ms=_now_ms())
        recipe = yaml.safe_dump(dict(plan.recipe), sort_keys=False, allow_unicode=True)
        self.spool.append("text", key=f"run:{run}", path="recipe.yaml", text=recipe)
        if facts.get("diff"):
            self.spool.append("text", key=f"run:{run}", path="uncommitted.diff", text=facts["diff"])
        self._deliverer = start_delivery()
        self._next_look = time.monotonic() + LOOK_EVERY_S

    def tick(self) -> None:
        """Start the delivering process again where it has been killed."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_EVERY_S
        ended = self._deliverer is None or self._deliverer.poll() is not None
        if ended and not is_delivering():
            self._deliverer = start_delivery()

    def stage_started(self, node: Node) -> None:
        """A stage begins or goes on: its run, keyed by fingerprint."""
        self._append("stage", **self._stage(node))

    def stage_event(self, node: Node, event: Mapping[str, Any]) -> None:
        """Points of the curves and of the machine."""
        kind = event.get("type")
        if kind not in ("report", "system"):
            return
        t_ms = int(event["t"] * 1000)
        points = [[name, float(value), int(event.get("samples", 0)), t_ms] for name, value in event["metrics"].items()]
        self._append("points", fingerprint=node.fingerprint, points=points, timed=kind == "system")

    def stage_finished(self, node: Node, manifest: Manifest, cached: bool, children: bool = True) -> None:
        """Final metrics, inputs and outputs. A cached stage gets a pointing child, or a table's row."""
        own = {name: value for name, value in manifest.metrics.items() if "/" not in name}
        if cached and not children:
            self._append("cached", stage=node.name, fingerprint=node.fingerprint, kind=node.kind, metrics=own)
            return
        if cached:
            self._append("stage", **self._stage(node), only_pointing=True)
        inputs = list(manifest.inputs.values())
        datasets = [
            {
                "name": i["name"],
                "digest": str(i["content_digest"])[:MAX_DIGEST],
                "source": {"store": self.store_url, "artifact": f"{i['kind']}/{i['fingerprint']}"},
                "context": "evaluation" if node.kind in ("evaluate", "benchmark") else "training",
            }
            for i in inputs
            if i["artifact"] == "Dataset"
        ]
        datasets += [
            {
                "name": use.name,
                "digest": use.fingerprint[:MAX_DIGEST],
                "source": {"source": use.name},
                "context": SOURCE,
            }
            for use in lineage.inputs(manifest)
            if use.role == SOURCE
        ]
        models = [i["fingerprint"] for i in inputs if i["artifact"] == "Model"]
        self._append("made", fingerprint=node.fingerprint, tags=_made(manifest, type(node.config)))
        diff = manifest.provenance.get("code", {}).get("diff")
        if diff and not cached:
            self._append("text", fingerprint=node.fingerprint, path="uncommitted.diff", text=diff)
        self._append("uses", fingerprint=node.fingerprint, datasets=datasets, models=models)
        point = {"step": int(manifest.summary.get("samples", 0)), "t_ms": int(manifest.finished * 1000)}
        if _makes(node, "Model"):
            self._append(
                "model", fingerprint=node.fingerprint, name=node.name, metrics=own, tags=self._tags(node), **point
            )
        self._append("final", fingerprint=node.fingerprint, metrics=dict(manifest.metrics), **point)
        about = {i["name"]: i["fingerprint"] for i in inputs}
        for name, fingerprint in about.items():
            judged = {
                metric.removeprefix(f"{name}/"): value
                for metric, value in manifest.metrics.items()
                if metric.startswith(f"{name}/")
            }
            if judged:
                self._append("judged", fingerprint=fingerprint, metrics=judged, t_ms=point["t_ms"])
        self._append("end", fingerprint=node.fingerprint, status="FINISHED", t_ms=point["t_ms"])

    def stage_failed(self, node: Node, reason: str, stopped: bool) -> None:
        """The stage ended without a result; a stopped one can go on later."""
        status = "KILLED" if stopped else "FAILED"
        self._append("text", fingerprint=node.fingerprint, path="error.txt", text=reason)
        self._append("end", fingerprint=node.fingerprint, status=status, t_ms=_now_ms())

    def attach(self, key: str, name: str, text: str) -> None:
        """A small text file for the submission's run, or for a stage's (key = its fingerprint)."""
        if key:
            self._append("text", fingerprint=key, path=name, text=text)
        else:
            self._append("text", key=f"run:{self.run}", path=name, text=text)

    def attach_file(self, fingerprint: str, path: str) -> None:
        """A local file that stays where it is until delivered, for the run of a stage and of the submission."""
        self._append("file", fingerprint=fingerprint, path=path)
        self._append("file", key=f"run:{self.run}", path=path)

    def run_finished(self, ok: bool, stopped: bool = False) -> None:
        """The last operation."""
        status = "FINISHED" if ok else "KILLED" if stopped else "FAILED"
        self._append("end", key=f"run:{self.run}", status=status, t_ms=_now_ms())
        if self.spool is not None:
            self.spool.close()

    def _append(self, op: str, **fields: Any) -> None:
        if self.spool is not None:
            self.spool.append(op, **fields)

    def _tags(self, node: Node) -> dict[str, str]:
        return {"orch.fingerprint": str(node.fingerprint), "orch.kind": node.kind, "orch.stage": node.name}

    def _stage(self, node: Node) -> dict[str, Any]:
        config = node.config.model_dump(mode="json", by_alias=True)
        return {
            "fingerprint": node.fingerprint,
            "name": node.name,
            "tags": self._tags(node) | {"orch.run": self.run},
            "params": {key: str(value)[:500] for key, value in flatten({"kind": node.kind, **config}).items()},
            "t_ms": _now_ms(),
        }


def _made(manifest: Manifest, config: type[Config]) -> dict[str, str]:
    """How an artifact came to be, as tags of its run: code, packages, machine, seeds, cost."""
    known = lineage.facts(manifest, config)
    code = manifest.provenance.get("code", {})
    tags = {
        **MADE_BY,
        "mlflow.source.git.commit": known["commit"],
        "orch.dirty": str(code["dirty"]).lower() if "dirty" in code else None,
        "orch.diff_sha256": known["uncommitted_changes"],
        "orch.content_digest": known["content_digest"],
        "orch.host": known["host"],
        "orch.device": known["device"],
        "orch.seeds": json.dumps(known["seeds"]) if known["seeds"] else None,
        "orch.packages": json.dumps(known["packages"]) if known["packages"] else None,
        "orch.generation": manifest.generation,
        "orch.wall_s": f"{known['wall_s']:.3f}",
        "orch.cpu_hours": f"{known['cpu_hours']:.6g}",
        "orch.gpu_hours": f"{known['gpu_hours']:.6g}",
    }
    return {name: str(value)[:MAX_TAG] for name, value in tags.items() if value is not None}


def _makes(node: Node, artifact: str) -> bool:
    outputs = getattr(type(node.config), "outputs", {})
    return any(kind.__name__ == artifact for kind in outputs.values())


def _now_ms() -> int:
    return int(time.time() * 1000)
