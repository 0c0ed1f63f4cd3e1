"""Runs an `embed` stage: all views of all samples in uid order, then each distinct caption once.

Resumable at any batch (line.py). Declared files hold neither names nor timings, so two recipes that ask for the same
features otherwise make the same Embeddings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch

from orchestrator.data.bad import Tally
from orchestrator.data.dataset import Dataset
from orchestrator.data.embeddings import About, Array, finish
from orchestrator.data.preprocess import Preprocess, Tokenizer
from orchestrator.models.external import identify_external
from orchestrator.models.interface import Model
from orchestrator.stages.base import Outcome, StageContext
from orchestrator.stages.embed.batches import Batches, Inputs
from orchestrator.stages.embed.config import EmbedStage
from orchestrator.stages.embed.line import Line
from orchestrator.stages.models import load_input


def run(ctx: StageContext) -> Outcome:
    """Embed, from the last checkpoint on; when asked to stop, keep a checkpoint and stop after the current batch."""
    config = ctx.config
    assert isinstance(config, EmbedStage)
    torch.set_num_threads(ctx.resources.threads)
    encoder = Encoder(ctx, config)
    everything = Dataset.open(ctx.inputs["data"])
    everything.check_shards()
    tally = Tally(everything.name, len(everything), config.max_bad, tell=partial(_warn, ctx))
    dataset = _samples(everything, config)
    batches = Batches(dataset, config, encoder.preprocess, encoder.tokenizer)
    image_dims, text_dims = encoder.dims()
    arrays = (
        Array(ctx.out, "image", batches.images, image_dims, config.dtype),
        Array(ctx.out, "text", batches.texts, text_dims, config.dtype, batches.text_rows),
    )
    line = Line(arrays, ctx.checkpoints, tally)
    resumed, started = line.restore(), time.monotonic()

    def encode(inputs: Inputs) -> np.ndarray:
        features = encoder(inputs)
        for places, row, bad in inputs.bad:
            tally.meet(dataset, row, bad)
            features[places] = 0
        return features

    if resumed:
        ctx.events.emit("resumed", samples=resumed, generation=ctx.checkpoints.generation)
    reason = _fill(ctx, config, line, batches.ahead(line.position, ctx.resources.threads), encode)
    if reason is not None:
        for file in ctx.out.iterdir():
            file.unlink()
        return Outcome(stopped=reason)
    about = About(
        model=_identity(ctx, "model"),
        data=_identity(ctx, "data"),
        split=config.split,
        views=config.views,
        seed=config.seed,
        augment=config.augment,
        captions=config.captions,
        preprocess=encoder.preprocess,
        tokenizer=encoder.tokenizer,
        scale=encoder.scale(),
    )
    finish(ctx.out, about, dataset.column("uid").view(np.uint8).reshape(-1, 16), arrays)
    summary = {
        "precision": config.precision,
        "device": encoder.device.type,
        "encoded_per_s": (len(line) - resumed) / (time.monotonic() - started),
        "resumed_at": resumed,
        "bad_samples": tally.found.as_json(),
    }
    sizes = {"samples": len(dataset), "image_features": batches.images, "text_features": batches.texts}
    return Outcome(metrics={name: float(value) for name, value in sizes.items()}, summary=summary)


def _warn(ctx: StageContext, line: str) -> None:
    ctx.events.emit("message", level="warning", text=line)


def _samples(dataset: Dataset, config: EmbedStage) -> Dataset:
    """The samples to embed, in uid order."""
    if config.split is not None and "split" in dataset.columns:
        dataset = dataset.where(split=config.split)
    return dataset.take(np.argsort(dataset.column("uid"), order=("high", "low")))


def _fill(
    ctx: StageContext, config: EmbedStage, line: Line, ahead: Iterable[Inputs], encode: Callable[[Inputs], np.ndarray]
) -> str | None:
    """Encode what is left of the line; the reason to stop before its end, or None."""
    phase = None
    for number, inputs in enumerate(ahead, 1):
        if inputs.side != phase:
            phase = inputs.side
            ctx.events.emit("phase", name=phase)
        line.add(encode(inputs))
        ctx.events.emit("progress", done=line.position, total=len(line), unit="samples")
        reason = ctx.should_stop() if line.position < len(line) else None
        if reason is not None or number % config.checkpoint_every == 0:
            ctx.events.flush()
            line.save()
        if reason is not None:
            return reason
    return None


class Encoder:
    """The stage's model on its device, in its precision."""

    def __init__(self, ctx: StageContext, config: EmbedStage) -> None:
        self.device = torch.device("cuda" if ctx.resources.gpus else "cpu")
        self._bf16 = config.precision == "bf16"
        self._model: Model
        self.preprocess: Preprocess
        self.tokenizer: Tokenizer
        self._model, self.preprocess, self.tokenizer = load_input(ctx.inputs, ctx.input_names, "model", self.device)

    @torch.inference_mode()
    def __call__(self, inputs: Inputs) -> np.ndarray:
        """Features [inputs.size, d] float32."""
        features = None
        for places, piece in inputs.pieces:
            there = piece.to(self.device, non_blocking=True)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
                if inputs.side == "image":
                    found = self._model.encode_image(self.preprocess.normalise(there))
                else:
                    found = self._model.encode_text(there)
            values = found.float().cpu().numpy()
            if features is None:
                features = np.empty((inputs.size, values.shape[1]), np.float32)
            features[places] = values
        assert features is not None
        return features

    def dims(self) -> tuple[int, int]:
        """Numbers in a feature of an image, and of a text."""
        side = self.preprocess.image_size
        image = Inputs("image", 1, ((np.arange(1), torch.zeros(1, 3, side, side, dtype=torch.uint8)),))
        text = Inputs("text", 1, ((np.arange(1), self.tokenizer(["a"])),))
        return self(image).shape[1], self(text).shape[1]

    def scale(self) -> float | None:
        """The multiplier of similarities that the model was trained with."""
        logarithm = getattr(self._model, "logit_scale", None)
        return None if logarithm is None else float(logarithm.detach().exp())


def _identity(ctx: StageContext, key: str) -> str:
    """What identifies an input: its fingerprint, or what an external model is known by."""
    handle = ctx.inputs.get(key)
    return identify_external(ctx.input_names[key]) if handle is None else handle.manifest.fingerprint
