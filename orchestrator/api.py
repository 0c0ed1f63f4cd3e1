"""The public interface: `submit` a recipe, `load_model` what came of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import UserError

if TYPE_CHECKING:
    from orchestrator.data.preprocess import Preprocess, Tokenizer
    from orchestrator.engine.executor import Executor
    from orchestrator.engine.observe import RunResult
    from orchestrator.models.interface import Model
    from orchestrator.store.artifacts import Store

DEFAULT_STORE = "orch-store"


def submit(
    recipe: str | os.PathLike[str],
    *,
    store: str | None = None,
    overrides: Sequence[str] = (),
    until: str | Sequence[str] | None = None,
    rerun: str | Sequence[str] = (),
    smoke: bool = False,
    quiet: bool = False,
    tracking: bool = True,
    observers: Sequence[Any] = (),
    executor: Executor | None = None,
) -> RunResult:
    """Run what is not there yet of a recipe, on Ray, and say how it went.

    Args:
        recipe: a YAML file.
        store: where artifacts are: a folder or `s3://bucket/prefix`. Default: `ORCH_STORE`, else `./orch-store`.
        overrides: changes such as `stages.small.steps=50`.
        until: stop after this stage, or these.
        rerun: compute these anew though they are there.
        smoke: two steps a stage on CPU-sized models.
        quiet: show nothing while it runs.
        tracking: tell MLflow.
        observers: further watchers (engine/observe.py).
        executor: where jobs run, instead of the Ray cluster.

    Returns:
        RunResult: `ok`, each stage's state, and the manifests of what is there. Failed stages do not raise.

    Raises:
        UserError: before anything runs, if the recipe (RecipeError has all problems) or what was asked is wrong.
    """
    from orchestrator.engine.planning import request
    from orchestrator.engine.run import run
    from orchestrator.engine.view import view
    from orchestrator.report.writer import PageWriter

    wanted = request(recipe, overrides, _several(until), _several(rerun), smoke)
    opened = open_store(store)
    shown = view(quiet)
    tracker = None
    if tracking:
        from orchestrator.tracking.tracker import Tracker

        tracker = Tracker(opened.url)
    attach = (lambda *_: None) if tracker is None else partial(tracker.attach, "")
    # The page comes before the tracker, which takes nothing more once the run is finished.
    watching = [*observers, PageWriter(opened, attach, shown.say), *filter(None, [tracker])]
    try:
        return run(wanted, opened, shown, watching, executor)
    finally:
        shown.close()


def load_model(ref: str, store: str | None = None) -> tuple[Model, Preprocess, Tokenizer]:
    """A trained model in eval mode on the CPU, with its preprocessing and tokenizer.

    Args:
        ref: a stage (the newest of that name), `run/stage`, the beginning of a fingerprint, the name it is kept under,
            a folder with a model, or an external one (`open_clip:ViT-B-32/openai`, `hf-hub:...`).
        store: as in `submit`.

    Raises:
        UserError: there is no such model.
    """
    if ref.startswith(("open_clip:", "hf-hub:")) or (Path(ref) / "model.json").is_file():
        from orchestrator.models.external import load_external

        return load_external(ref)
    from orchestrator.store.artifacts import Handle
    from orchestrator.store.lookup import find_artifact

    opened = open_store(store)
    manifest = find_artifact(opened, ref)
    if "model.json" not in manifest.files:
        raise UserError(f"'{ref}' is not a model but what stage '{manifest.stage}' of kind {manifest.kind} made")
    from orchestrator.models.artifact import load

    return load(Handle(opened, manifest))


def open_store(url: str | None = None) -> Store:
    """The store at this address, by default at `ORCH_STORE`, else `./orch-store`."""
    from orchestrator.store.artifacts import Store

    return Store.open(url or os.environ.get("ORCH_STORE") or DEFAULT_STORE)


def _several(names: str | Sequence[str] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())
