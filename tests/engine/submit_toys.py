"""Submits toy stages to the recorded cluster, as a process that tests may kill: ROOT BEHAVIOURS SHAPE (the latter as
JSON).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import toy_kinds

from orchestrator.engine.observe import Observer
from orchestrator.engine.run import run
from orchestrator.engine.view import view
from orchestrator.store.artifacts import Store
from orchestrator.store.logs import LogReader


class Events(Observer):
    """Types of events by stage, without those that depend on time."""

    def __init__(self) -> None:
        self.types: dict[str, list[str]] = {}

    def stage_event(self, node, event):
        if event["type"] != "system":
            self.types.setdefault(node.name, []).append(event["type"])


def main(root: Path, behaviours: dict[str, str], shape: dict[str, list[str]]) -> None:
    plan = toy_kinds.plan({name: tuple(needs) for name, needs in shape.items()}, root / "trace", behaviours)
    request = SimpleNamespace(said=(), compile=lambda store: plan, again=("toys.yaml",))
    store, events = Store.open(str(root / "store")), Events()
    shown = view()
    result = run(request, store, shown, [events])
    shown.close()
    print(
        json.dumps(
            {
                "states": {name: s.state for name, s in result.stages.items()},
                "attempts": {name: s.attempts for name, s in result.stages.items()},
                "events": events.types,
                "logs": {n.name: LogReader(store.storage, n.fingerprint).poll() for n in plan.nodes.values()},
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3]))
