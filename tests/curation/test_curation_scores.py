"""Scores of pairs, and what is kept by them: limits, the best share by DataComp's rule, whatever the blocks are."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from curation_lab import block, fit_and_judge, identities, store_features, tldr, tools
from data_shards import make_dataset, sample, write_shard
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.curation.block import Block
from orchestrator.curation.clip_score import ClipScore
from orchestrator.curation.keep_top import KeepTop, quantile
from orchestrator.curation.match_score import MatchScore
from orchestrator.curation.threshold import Threshold
from orchestrator.data.preprocess import Preprocess, Tokenizer
from orchestrator.models.captioner import Book, Captioner
from orchestrator.models.interface import Model
from orchestrator.models.open_clip_bridge import create
from orchestrator.stages.curate.config import CurateStage

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
Values = st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=50)


@given(Values, st.sampled_from([0.01, 0.1, 0.3, 0.5, 0.999, 1.0]), st.integers(1, 7))
def test_the_limit_is_the_value_at_its_rank_however_values_come_in_pieces(values, share, cuts):
    found, count = quantile(np.array_split(np.array(values), cuts), share)
    rank = min(int(len(values) * share), len(values) - 1)
    assert (found, count) == (sorted(values, reverse=True)[rank], len(values))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_the_best_share_is_datacomps(share):
    case = tldr("datacomp_clip_score")
    uids = np.frombuffer(bytes.fromhex("".join(case["uid"])), np.uint8).reshape(-1, 16)
    blocks = [block(identities(10), score=scores) for scores in np.split(case["score"], 3)]
    fitted, verdicts = fit_and_judge(KeepTop(column="score", share=share), blocks, None)
    kept = np.concatenate([verdict.reasons for verdict in verdicts]) == ""
    assert fitted["limit"][0] == case[f"threshold_fraction_{share}"]
    assert sorted(uid.tobytes().hex() for uid in uids[kept]) == case[f"kept_fraction_{share}"]


def test_a_limit_keeps_what_equals_it_as_datacomp_does():
    case = tldr("datacomp_clip_score")
    kept = Threshold(column="score", min=0.3).judge(block(identities(30), score=case["score"])).reasons == ""
    assert sorted(np.array(case["uid"])[kept].tolist()) == case["kept_threshold_0.3"]


def test_samples_without_a_value_and_out_of_limits_are_told_apart():
    scores = np.array([0.1, np.nan, 0.5, 0.9], np.float32)
    reasons = Threshold(column="score", min=0.2, max=0.8).judge(block(identities(4), score=scores)).reasons
    assert reasons.tolist() == ["score under 0.2", "no score", "", "score over 0.8"]
    fitted, (verdict,) = fit_and_judge(KeepTop(column="score", share=0.5), [block(identities(4), score=scores)], None)
    assert verdict.reasons.tolist() == ["score not among the best 0.5", "no score", "", ""]
    assert KeepTop(column="score", share=0.5).facts(fitted) == {
        "least value that stays": pytest.approx(0.5),
        "samples with a value": 3,
    }
    with pytest.raises(ValidationError, match="needs `min`, `max` or both"):
        Threshold(column="score")


@pytest.fixture
def pairs(tmp_path):
    members = [member for n in range(7) for member in sample(f"{n:04d}", n)]
    broken = sample("0007", 7)
    broken[0] = (broken[0][0], broken[0][1][:60])
    write_shard(tmp_path / "pets" / "00000.tar", [*members, *broken])
    return Block(make_dataset(tmp_path, str(tmp_path / "pets")), {})


def opened(model):
    parts = (model.eval(), Preprocess(16), Tokenizer(context_length=12))
    return SimpleNamespace(model=lambda name: parts, device=torch.device("cpu"))


def test_clip_score_is_the_cosine_by_a_model_or_by_stored_features(tmp_path, pairs):
    model = create(CONFIG, 0)
    by_model = [
        ClipScore.model_validate({"model": "m", "batch": batch}).open(opened(model))(pairs) for batch in (2, 64)
    ]
    first, second = (verdict.columns["clip_score"] for verdict in by_model)
    np.testing.assert_allclose(first[:7], second[:7], atol=1e-6)
    assert by_model[0].reasons.tolist() == [""] * 7 + ["image cannot be decoded"]
    assert len(np.unique(first[:7].round(4))) == 7
    with torch.inference_mode():
        images = Preprocess(16)(pairs.images[:7])
        texts = Tokenizer(context_length=12)(pairs.column("caption")[:7].tolist())
        features = {"image": model.encode_image(images), "text": model.encode_text(texts)}
    padded = {name: np.vstack([values.numpy(), np.zeros((1, 16), np.float32)]) for name, values in features.items()}
    stored = store_features(tmp_path / "features", pairs.uid, **padded)
    verdict = ClipScore.model_validate({"features": "f"}).open(tools(features=stored))(pairs)
    np.testing.assert_allclose(verdict.columns["clip_score"][:7], first[:7], atol=1e-6)
    assert verdict.reasons.tolist() == [""] * 7 + ["no features"]
    with pytest.raises(ValidationError, match="one of them"):
        ClipScore()


class Judge(Model):
    """Finds a pair the better, the lighter the image and the longer the caption."""

    capabilities = frozenset({"match"})

    def match(self, images, tokens):
        return torch.sigmoid(images.mean(dim=(1, 2, 3)) + (tokens > 0).sum(dim=1))


@pytest.mark.parametrize(
    ("model", "way"), [(Judge(), "match"), (Captioner.create(CONFIG, Book(codes=16)), "likelihood")]
)
def test_match_score_says_by_what_it_judged(pairs, model, way):
    verdict = MatchScore.model_validate({"model": "m", "batch": 3}).open(opened(model))(pairs)
    assert verdict.counts == {f"scored by {way}": 7}
    assert verdict.reasons.tolist() == [""] * 7 + ["image cannot be decoded"]
    images = Preprocess(16)(pairs.images[:7])
    texts = Tokenizer(context_length=12)(pairs.column("caption")[:7].tolist())
    with torch.no_grad():
        np.testing.assert_allclose(verdict.columns["match_score"][:7], getattr(model, way)(images, texts), rtol=1e-5)


def test_a_stage_asks_of_a_model_what_its_operators_need():
    steps = [{"clip_score": {"model": "m"}}, {"match_score": {"model": "m"}}]
    stage = CurateStage.model_validate({"data": "d", "steps": steps})
    assert stage.asks_of(("steps", 1, "model"), frozenset({"encode_image"})) == {"match"}
    assert stage.asks_of(("steps", 1, "model"), frozenset({"likelihood"})) == frozenset()
    assert stage.asks_of(("data",), frozenset()) == frozenset()
