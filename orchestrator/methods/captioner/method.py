"""TL;DR's captioner in training: predict captions from the codes of their images, and let codes and tokens meet.

Everything a step needs of a sample is the sample's own, so features are a few numbers an image, and gradient caching
is plain accumulation that knows the batch's number of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.data.draws import integer
from orchestrator.data.preprocess import Tokenizer
from orchestrator.methods.captioner import config as options
from orchestrator.methods.captioner.keywords import keywords
from orchestrator.methods.captioner.loss import codebook_loss, language_modelling, perplexity, usage
from orchestrator.models.captioner import Book, Captioner
from orchestrator.models.flops import captioner_flops
from orchestrator.training.flops import TRAINED
from orchestrator.training.gather import gather
from orchestrator.training.method import Build, Features, LossOutput, Method
from orchestrator.training.types import Batch

CAPTIONS = 200_000
"""Captions looked at for the vocabulary and the keywords."""
ALIVE = 10_000
"""A code is alive while one of that many samples last seen was given it."""


class CaptionerMethod(Method):
    """Language modelling through a codebook. A model without inherited weights is fitted to the captions first."""

    config: options.Captioner
    model: Captioner
    last_used: Tensor
    placed: Tensor

    def __init__(self, config: options.Captioner, build: Build) -> None:
        super().__init__(config, build)
        self.register_buffer("last_used", torch.full((config.codes,), -ALIVE))  # at so many samples seen
        self.register_buffer("placed", torch.zeros(config.codes, dtype=torch.int64))  # likewise
        self._revival: tuple[Tensor, Tensor] | None = None
        if not build.inherited:
            prepare(self.model, config, build)

    @classmethod
    def make_model(cls, config: options.Captioner, shape: Mapping[str, Any], seed: int) -> Captioner:
        """A captioner of the shape's towers."""
        return Captioner.create(shape, Book(config.codes, config.pieces, config.class_token, config.vocabulary), seed)

    def encode(self, batch: Batch) -> Features:
        """By image: summed loss `lm` [B] of so many `tokens` [B], distances `commitment` and `codebook` [B], `codes`
        [B, n], and one of the tokens (or pieces) behind them, `spare` [B, d].
        """
        told = self.model(batch.images[0], batch.tokens[0], self.config.label_smoothing)
        found = told.quantised
        rows = torch.arange(len(batch), device=found.codes.device)
        chosen = torch.randint(found.codes.shape[1], (len(batch),), device=found.codes.device)
        return {
            "lm": told.loss,
            "tokens": told.tokens,
            "commitment": found.commitment,
            "codebook": found.codebook,
            "codes": found.codes,
            "spare": found.pieces[rows, chosen],
        }

    def loss(self, features: Features, state: Mapping[str, Any]) -> LossOutput:
        """Terms `lm` and `emb`; reports the perplexity of the batch's codes and the share of codes `alive`."""
        config, samples = self.config, state["samples"]
        lm = language_modelling(features["lm"], features["tokens"], self.world)
        emb = codebook_loss(features["commitment"], features["codebook"], config.beta, config.beta_weighs)
        shares = usage(features["codes"], config.codes, self.world)
        self.last_used[shares > 0] = samples
        alive = (self.last_used > samples - ALIVE).float().mean()
        if config.revive_after is not None:
            dead = samples - torch.maximum(self.last_used, self.placed) >= config.revive_after
            self._revival = dead, gather(features["spare"].detach(), self.world)
        terms = {"lm": config.lm_weight * lm, "emb": config.emb_weight * emb}
        return LossOutput(terms, {"perplexity": perplexity(shares), "alive": alive})

    def flops(self, batch: Batch) -> float:
        """Three forward passes: the backward pass is worth two."""
        return TRAINED * captioner_flops(self.model, len(batch), batch.tokens[0])

    @torch.no_grad()
    def on_step_end(self, samples: int) -> None:
        """Put dead codes where tokens are, at most one for each image of the batch."""
        if self._revival is None:
            return
        dead, spare = self._revival
        revived = dead.nonzero()[: len(spare), 0]
        self.model.codebook.weight[revived] = spare[: len(revived)]
        self.placed[revived] = samples
        self._revival = None


@torch.no_grad()
def prepare(model: Captioner, config: options.Captioner, build: Build) -> None:
    """Choose the tokens the decoder knows, and the first codes, by the training captions."""
    assert build.captions is not None
    assert build.tokenizer is not None
    wanted = config.codebook_init == "keywords"
    captions = build.captions(CAPTIONS) if wanted or config.vocabulary is not None else []
    if model.ids is not None:
        model.ids.copy_(model.complete(by_frequency(build.tokenizer(captions))))
    if wanted:
        found = keywords(captions, config.codes)
        model.codebook.weight.copy_(keyword_codes(model, found, build.tokenizer, build.seed))
    elif config.codebook_init == "xavier":
        generator = torch.Generator().manual_seed(integer(build.seed, "xavier codes") % 2**63)
        codes = torch.empty(model.codebook.weight.shape)
        model.codebook.weight.copy_(nn.init.xavier_uniform_(codes, generator=generator))


def by_frequency(tokens: Tensor) -> list[int]:
    """Token ids of captions [M, T], the most frequent first, equally frequent ones by number; padding is none."""
    inside = torch.arange(tokens.shape[1]) <= tokens.argmax(dim=1)[:, None]
    counts = tokens[inside].bincount()
    return counts.argsort(descending=True, stable=True)[: int((counts > 0).sum())].tolist()


def keyword_codes(model: Captioner, phrases: list[str], tokenizer: Tokenizer, seed: int) -> Tensor:
    """Codes [K, d] from the decoder's embeddings of phrases, the mean over their word pieces.

    They are projected at random where widths differ, and brought to the mean 0 and variance 1 that the layer norm
    gives the tokens they shall stand for: codes much smaller all lie behind the first ones that tokens find. If there
    are fewer phrases than codes, the rest are drawn from that normal distribution.
    """
    weight = model.codebook.weight
    generator = torch.Generator().manual_seed(integer(seed, "keyword codes") % 2**63)
    codes = torch.randn(weight.shape, generator=generator)
    if phrases:
        pieces = [tokenizer([phrase])[0, 1:-1].to(weight.device) for phrase in phrases]
        table = model.text_tower.token_embedding.weight
        found = torch.stack([table[model.token_rows(ids)].mean(dim=0) for ids in pieces]).cpu()
        if found.shape[1] != weight.shape[1]:
            found = found @ torch.randn(found.shape[1], weight.shape[1], generator=generator)
        found = found - found.mean(dim=1, keepdim=True)
        codes[: len(found)] = found / found.std(dim=1, keepdim=True)
    return codes.to(weight.device)
