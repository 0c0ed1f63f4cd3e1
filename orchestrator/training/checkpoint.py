"""Checkpoints as bytes, written in the background.

A checkpoint is one dictionary of tensors and plain values, so it loads with torch's `weights_only` and executes
nothing. It holds all that is not a function of (settings, samples seen): weights and buffers, the optimiser, the
phase and what it did to the method's structure, the sums behind the next report, the count of skipped steps. Learning
rate, data order and random numbers follow from the position and need no saving. Where and under which name the bytes
are kept is the store's business (store/checkpoints.py).
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from orchestrator.errors import StageError

FORMAT = 2
"""Raised when the dictionary's keys change meaning; older checkpoints are then refused, and the stage starts again."""


def to_bytes(state: Mapping[str, Any]) -> bytes:
    """Serialise a checkpoint; the bytes no longer change when training goes on."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    return buffer.getvalue()


def from_bytes(data: bytes) -> dict[str, Any]:
    """The dictionary again, on the CPU. StageError if it is not a checkpoint of this format."""
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise StageError(f"a checkpoint cannot be read: {error}", "Remove it; the one before is used then.") from error
    if state.pop("format", None) != FORMAT:
        raise StageError(
            "a checkpoint was written by another version of the training loop",
            "Finish the run with that version, or remove the stage's checkpoints to start again.",
        )
    return state


class BackgroundWriter:
    """Keeps checkpoints without stopping the training: tensors are copied at once, serialised and written by a thread.

    The next `save`, and `close`, wait for the write before; its failure is raised there. Use as a context manager.
    """

    def __init__(self, write: Callable[[int, bytes], object]) -> None:
        self._write = write
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future | None = None

    def save(self, samples: int, state: Mapping[str, Any]) -> None:
        """Copy `state` now and write it in the background, once the former write is done."""
        self.wait()
        copied = _copied(state)
        self._pending = self._pool.submit(lambda: self._write(samples, to_bytes(copied)))

    def wait(self) -> None:
        """Block until what was saved is written; raises what the write raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._pool.shutdown()


def _copied(value: Any) -> Any:
    """The same value in memory of its own, on the CPU: training may go on and change the original."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {name: _copied(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(part) for part in value)
    return value
