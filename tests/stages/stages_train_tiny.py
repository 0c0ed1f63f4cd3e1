"""A store with a tiny data set, and the context in which the engine would call a training stage's runner."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from orchestrator.data import source
from orchestrator.plan.types import Resources
from orchestrator.stages.base import Outcome, StageConfig, StageContext
from orchestrator.stages.dataset.config import DatasetStage, SplitConfig
from orchestrator.store.artifacts import Handle, Manifest, Store
from orchestrator.store.checkpoints import CheckpointStore

COLOURS = ("red", "green", "blue", "black", "white", "yellow", "pink", "grey")
MODEL = "tiny"
ONE = Resources()


@dataclass
class Events:
    """Keeps what a stage tells."""

    seen: list[dict[str, Any]] = field(default_factory=list)

    def emit(self, type: str, **fields: Any) -> None:
        self.seen.append({"type": type, **fields})

    def flush(self) -> bool:
        return True

    def of(self, type: str) -> list[dict[str, Any]]:
        return [event for event in self.seen if event["type"] == type]


def write_shard(path: Path, count: int) -> None:
    """Squares of some colour and size on white, with captions that say which."""
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            colour, side = COLOURS[number % len(COLOURS)], 4 + 2 * (number // len(COLOURS))
            picture = Image.new("RGB", (32, 32), "white")
            picture.paste(colour, (0, 0, side, side))
            image = io.BytesIO()
            picture.save(image, "PNG")
            caption = f"a {colour} square of {side}"
            for name, content in ((f"{number:05d}.png", image.getvalue()), (f"{number:05d}.txt", caption.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def make_store(folder: Path, count: int = 80) -> tuple[Store, Handle]:
    """A store under `folder` that holds one Dataset, a fifth of it held out of training."""
    store = Store.open(str(folder / "store"))
    (folder / "shards").mkdir(parents=True)
    write_shard(folder / "shards" / "00000.tar", count)
    source.prepare(str(folder / "shards"), store)
    config = DatasetStage(source=str(folder / "shards"), split=SplitConfig(holdout=0.2))
    return store, run_stage(store, config, folder, "dataset", "d" * 64).handle


@dataclass
class Done:
    """One call of a runner."""

    outcome: Outcome
    events: Events
    out: Path
    handle: Handle | None


def run_stage(
    store: Store,
    config: StageConfig,
    folder: Path,
    kind: str,
    fingerprint: str,
    inputs: Mapping[str, Handle] | None = None,
    generation: int = 1,
    resources: Resources = ONE,
    should_stop: Callable[[], str | None] = lambda: None,
    names: Mapping[str, str] | None = None,
) -> Done:
    """Call the runner and publish what it wrote, as the engine does, unless it stopped early; `names` are those of
    external models.
    """
    out, scratch = folder / f"out-{fingerprint[:8]}-{generation}", folder / "scratch"
    out.mkdir(parents=True)
    scratch.mkdir(exist_ok=True)
    events = Events()
    context = StageContext(
        run_id="run",
        stage=kind,
        kind=kind,
        fingerprint=fingerprint,
        config=config,
        inputs=inputs or {},
        input_names={key: key for key in inputs or {}} | dict(names or {}),
        store=store,
        out=out,
        scratch=scratch,
        checkpoints=CheckpointStore(store.storage, fingerprint, generation),
        resources=resources,
        events=events,
        should_stop=should_stop,
        sources={name: source.known(name, store).place for name in config.external_sources()},
    )
    module, _, function = config.runner.partition(":")
    outcome = getattr(import_module(module), function)(context)
    handle = None if outcome.stopped else publish(store, out, kind, fingerprint, outcome)
    return Done(outcome, events, out, handle)


def publish(store: Store, out: Path, kind: str, fingerprint: str, outcome: Outcome) -> Handle:
    facts = {
        "attempt": "1",
        "generation": 1,
        "stage": kind,
        "run": "run",
        "payload": {},
        "inputs": {},
        "provenance": {},
    }
    manifest = Manifest(
        kind=kind,
        fingerprint=fingerprint,
        files={},
        content_digest="",
        metrics=outcome.metrics,
        summary=outcome.summary,
        started=0.0,
        finished=0.0,
        wall_s=0.0,
        **facts,
    )
    return Handle(store, store.publish(manifest, out, outcome.undeclared))
