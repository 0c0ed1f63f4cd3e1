"""Validation in training: the figures are the protocol's, and bad wishes are refused before work starts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from evaluation_toy import PREPROCESS, ToyDataset, ToyModel, broken, tokenize

from orchestrator.data.bad import Tally
from orchestrator.errors import DataError, UserError
from orchestrator.evaluation.validation import SCALE, Validation


def validation(dataset=None, **options) -> Validation:
    options = {"split": "ood", "limit": None, "group": 16} | options
    return Validation(dataset or ToyDataset.make(), PREPROCESS, tokenize, **options)


def test_a_perfect_model_has_the_least_loss_and_full_accuracy():
    figures = validation()(ToyModel())
    assert figures["val/zeroshot.top1"] == figures["val/zeroshot.top5"] == 1
    assert figures["val/loss"] < 1e-3


def test_the_loss_is_the_mean_over_samples_of_their_groups_symmetric_cross_entropy():
    dataset = ToyDataset.make()
    column = np.asarray(dataset.column("split")).astype(str)
    rows = np.flatnonzero(column == "ood")
    rows = rows[np.argsort(np.asarray(dataset.uids)[rows])]
    model = ToyModel()
    images = model.encode_image(PREPROCESS([s.image for s in dataset.read(rows.tolist())])).detach()
    texts = model.encode_text(tokenize([captions[0].text for captions in dataset.captions(rows.tolist())])).detach()
    total = 0.0
    for start in range(0, len(rows), 7):
        logits = SCALE * images[start : start + 7] @ texts[start : start + 7].T
        own = logits.diagonal()
        total += float((logits.logsumexp(0) - own).sum() + (logits.logsumexp(1) - own).sum()) / 2
    assert validation(group=7)(model)["val/loss"] == pytest.approx(total / len(rows), rel=1e-5)


def test_nothing_is_drawn_and_the_same_model_has_the_same_figures():
    state = torch.get_rng_state()
    look = validation(limit=9, group=4)
    assert look(ToyModel()) == look(ToyModel())
    assert torch.equal(state, torch.get_rng_state())


def test_a_single_sample_has_no_contrastive_loss():
    assert math.isnan(validation(limit=1)(ToyModel())["val/loss"])


@pytest.mark.parametrize(("split", "match"), [("test", "has no sample of split 'test'")])
def test_a_split_that_is_not_there_is_refused(split, match):
    with pytest.raises(UserError, match=match) as refused:
        validation(split=split)
    assert "ood" in refused.value.remedy


def test_bad_images_are_left_out_of_validation_and_counted_once():
    data = ToyDataset.make()
    for row in (50, 60):
        broken(data, row)
    tally = Tally("toy", len(data), 2)
    look, without = validation(data, tally=tally), validation(data.take([r for r in range(72) if r not in (50, 60)]))
    assert look(ToyModel()) == look(ToyModel()) == without(ToyModel())
    assert tally.found.counts == {"image cannot be decoded": 2}
    with pytest.raises(DataError, match="1 allowed"):
        validation(data, tally=Tally("toy", len(data), 1))(ToyModel())
