"""Stages that give away what they know, on every way there is, submitted as a process of its own: STORE MARKER.

`tells` succeeds; `breaks-MARKER` ends with an error that shows the environment. Both say the marker too, which is no
secret: a search that does not find it does not search.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping
from types import SimpleNamespace
from typing import ClassVar

from orchestrator.engine.run import run as submit
from orchestrator.engine.view import view
from orchestrator.plan.types import Node, Plan
from orchestrator.recipe.schema import Artifact, Dataset, Execution
from orchestrator.stages.base import Outcome, StageConfig, StageContext
from orchestrator.store.artifacts import Store
from orchestrator.tracking.tracker import Tracker

SECRETS = ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN")
"""What workers are given."""


class Leaks(StageConfig):
    """Says the marker and the secrets."""

    outputs: ClassVar[Mapping[str, type[Artifact]]] = {"default": Dataset}
    runner: ClassVar[str] = "security_leaks:run"

    label: str
    """Identity of the stage."""
    marker: Execution[str]
    """No secret."""


def run(ctx: StageContext) -> Outcome:
    """Say everything everywhere."""
    config = ctx.config
    assert isinstance(config, Leaks)
    text = " ".join([config.marker, *(os.environ[name] for name in SECRETS)])
    print("printed", text)
    print("environment", dict(os.environ))
    for half in (text[:-9], text[-9:] + "\n"):
        sys.stderr.write(half)
        sys.stderr.flush()
    logging.getLogger("leaks").warning("logged %s", text)
    warnings.warn(f"warned {text}", stacklevel=1)
    subprocess.run(
        ["sh", "-c", "echo child $MARKER $HF_TOKEN"], check=True, env={**os.environ, "MARKER": config.marker}
    )
    ctx.events.emit("message", level="warning", text=f"event {text}")
    ctx.events.emit("phase", name=f"phase {config.marker}")
    if config.label != "tells":
        raise ValueError(f"cannot reach https://me:{os.environ['HF_TOKEN']}@host: {text} {dict(os.environ)}")
    (ctx.out / "text").write_text(config.marker)
    return Outcome(metrics={"length": 1.0}, summary={"said": text})


def main(store_url: str, marker: str) -> None:
    nodes = {}
    broken = f"breaks-{marker}"
    for label in ("tells", broken):
        config = Leaks(label=label, marker=marker)
        fingerprint = hashlib.sha256(f"{label} {marker}".encode()).hexdigest()
        nodes[label] = Node(label, "leaks", config, (), config.resources.resolve(), {"label": label}, fingerprint)
    plan = Plan("leaks", nodes)
    request = SimpleNamespace(said=(), compile=lambda store: plan, again=("leaks.yaml",))
    shown = view()
    result = submit(request, Store.open(store_url), shown, [Tracker(store_url)])
    shown.close()
    assert {name: s.state for name, s in result.stages.items()} == {"tells": "done", broken: "failed"}


if __name__ == "__main__":
    import security_leaks  # by its name, by which workers import it too

    security_leaks.main(*sys.argv[1:])
