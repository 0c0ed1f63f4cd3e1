"""`python -m orchestrator.training RECIPE STAGE --out DIR`: train one stage here, without Ray; also under torchrun."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchError, UserError
from orchestrator.training.threads import share_cores

TEXT = """\
Train one stage of a recipe in this process, or in each of torchrun's: the worker of `orch submit` without Ray, for a
debugger, a profiler, or a GPU machine that has no Ray. The stage's inputs are read from the store. What is made goes
into DIR: checkpoints, events.jsonl, and at the end the Model, in DIR/model, which a recipe may name (`teacher:
./DIR/model`). Nothing is published and no lease is taken. The same command with the same DIR goes on from the last
checkpoint; SIGTERM and Ctrl-C write one first.

  python -m orchestrator.training recipe.yaml teacher --out runs/teacher
  torchrun --nproc-per-node 2 -m orchestrator.training recipe.yaml teacher --out runs/teacher

Exit code: 0 finished, 2 recipe or command wrong, 1 failed, 130 stopped (go on with the same command).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says; the exit code. Errors for people go to stderr, without a traceback."""
    options = parser().parse_args(arguments)
    share_cores(os.environ)
    rank = int(os.environ.get("RANK", "0"))
    try:
        standing = _standing(options)
    except OrchError as error:
        if rank == 0:  # every rank finds the same
            _say(f"error: {error}")
        return error.exit_code
    try:
        return _above("stages.train.standalone").run(
            standing, options.out, threads=options.threads, device=options.device, say=_say
        )
    except OrchError as error:
        _say(f"error: {error}" if rank == 0 else f"error of worker {rank}: {error}")
        return error.exit_code


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m orchestrator.training", description=TEXT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file")
    parser.add_argument("stage", metavar="STAGE", help="a stage of it that trains")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="the folder for all that is made")
    parser.add_argument("--store", metavar="URL", help="where its inputs are (default: ORCH_STORE, else ./orch-store)")
    parser.add_argument("-s", "--set", metavar="PATH=VALUE", action="append", default=[], help="change the recipe")
    parser.add_argument(
        "--threads", metavar="N", type=int, help="compute threads of a worker (default: the stage's resources)"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda if the stage's resources ask for GPUs"
    )
    parser.add_argument(
        "--make-inputs",
        action="store_true",
        help="first make inputs that are not there, in this process, and put them into the store",
    )
    return parser


def _standing(options: argparse.Namespace) -> Any:
    """The stage with all its inputs in the store."""
    standalone, store = _above("stages.train.standalone"), _above("api").open_store(options.store)
    standing = standalone.find(options.recipe, options.stage, store, options.set)
    if standing.missing and options.make_inputs:
        if "WORLD_SIZE" in os.environ:
            raise UserError("inputs are made by one process", "run this command once without torchrun")
        _make(options, standing.missing, store.url)
        standing = standalone.find(options.recipe, options.stage, store, options.set)
    standalone.check_inputs(standing, options.recipe, options.set)
    return standing


def _make(options: argparse.Namespace, stages: Sequence[str], store: str) -> None:
    """Run the stages in this process, which needs no Ray."""
    executor = _above("engine.local").LocalExecutor(os.cpu_count() or 1)
    _above("api").submit(
        options.recipe, store=store, overrides=options.set, until=stages, tracking=False, executor=executor
    )


def _above(module: str) -> Any:
    """A module of a layer above this package: an entry point stands above them all, the package beneath it does
    not.
    """
    return importlib.import_module(f"orchestrator.{module}")


def _say(text: str) -> None:
    os.write(2, f"{text}\n".encode())  # at once and whole: from a signal handler, beside other workers


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
