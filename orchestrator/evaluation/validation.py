"""What a model in training makes of held-out samples: the same few figures again and again, cheaply.

`val/loss` is CLIP's symmetric contrastive loss within fixed groups of samples, whatever loss the model is trained by;
`val/zeroshot.top1` and `.top5` follow the evaluation protocol (all training concepts as classes, one template).
Samples are seen unaugmented, in uid order. No random numbers are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from orchestrator.data.bad import Tally
from orchestrator.data.dataset import Dataset
from orchestrator.data.preprocess import Preprocess, Tokenizer
from orchestrator.errors import UserError
from orchestrator.evaluation import metrics, protocol
from orchestrator.evaluation.config import ZeroShot
from orchestrator.evaluation.encode import BadImages, Encoded, encode, without
from orchestrator.models.interface import Model

SCALE = 100.0
"""Multiplier of the similarities of a model that has none of its own."""


class Validation:
    """Figures of a model on one held-out split.

    Args:
        dataset: all of the data, the split among them.
        split, limit: which samples: the first `limit` in uid order of those with this value in column `split`.
        group: samples that are each other's negatives in the loss.
        batch: samples a forward pass.
        threads: threads that decode images.
        tally: counts samples whose images cannot be decoded, which are left out. Default: none may be bad.

    UserError where the data have no such split.
    """

    def __init__(
        self,
        dataset: Dataset,
        preprocess: Preprocess,
        tokenizer: Tokenizer,
        *,
        split: str,
        limit: int | None,
        group: int,
        batch: int = 128,
        threads: int = 1,
        tally: Tally | None = None,
    ) -> None:
        if "split" not in dataset.columns:
            raise UserError(
                f"validation needs held-out samples; '{dataset.name}' has no column 'split'",
                "leave `validation` out, or use data with a `split` column",
            )
        self._preprocess, self._tokenizer = preprocess, tokenizer
        self._split, self._limit = split, limit
        self._group, self._batch, self._threads = group, batch, threads
        self._tally = tally or Tally(dataset.name, len(dataset))
        self._lay_out(dataset)

    def _lay_out(self, dataset: Dataset) -> None:
        """Choose the samples and the questions."""
        self._dataset = dataset
        column = np.asarray(dataset.column("split")).astype(str)
        rows = np.flatnonzero(column == self._split)
        if not len(rows):
            raise UserError(
                f"'{dataset.name}' has no sample of split '{self._split}' to validate on",
                f"its splits are {', '.join(sorted(set(column)))}: set `validation.split`",
            )
        uids = np.asarray(dataset.uids)
        self._rows = rows[np.argsort(uids[rows])][: self._limit]
        self._texts = [captions[0].text for captions in dataset.captions(self._rows.tolist())]
        self._measure = self._zeroshot(self._split, self._limit)

    def _zeroshot(self, split: str, limit: int | None) -> protocol.Measure | None:
        if "concept" not in self._dataset.columns:
            return None
        config = ZeroShot(splits=[split], max_samples=limit)
        return protocol.zeroshot(config, self._dataset)[0]

    def __call__(self, model: Model) -> dict[str, float]:
        """The figures of a model in eval mode on its device; DataError if too many images are bad."""
        while True:
            try:
                return self._figures(model)
            except BadImages as found:
                self._lay_out(without(self._dataset, found, self._tally))

    def _figures(self, model: Model) -> dict[str, float]:
        prompts: Sequence[str] = self._measure.texts if self._measure is not None else ()
        rows = set(self._rows.tolist()) | set(self._measure.image_rows.tolist() if self._measure is not None else ())
        encoded = encode(
            model,
            self._preprocess,
            self._tokenizer,
            self._dataset,
            sorted(rows),
            sorted({*self._texts, *prompts}),
            batch=self._batch,
            threads=self._threads,
            tick=lambda done: None,
        )
        figures = {"val/loss": self._loss(model, encoded)}
        if self._measure is not None:
            rank = self._measure.rank(encoded)
            figures |= {f"val/zeroshot.top{k}": metrics.within(rank, k) for k in (1, 5)}
        return figures

    def _loss(self, model: Model, encoded: Encoded) -> float:
        """Mean over samples of the loss within their group; a last group of one has none."""
        own = getattr(model, "logit_scale", None)
        scale = SCALE if own is None else float(own.exp())
        total, count = 0.0, 0
        for start in range(0, len(self._rows), self._group):
            part = slice(start, start + self._group)
            images, texts = encoded.of_rows(self._rows[part]), encoded.of_texts(self._texts[part])
            if len(images) > 1:
                logits = scale * torch.as_tensor(encoded.scores(images, texts))
                pairs = torch.arange(len(logits))
                loss = (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2
                total, count = total + float(loss) * len(logits), count + len(logits)
        return total / count if count else float("nan")
