"""Captions chosen, rewritten and brought in from outside; how an original and its generated caption come together."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curation_lab import Ids, identities
from pydantic import ValidationError

from orchestrator.curation.block import Block
from orchestrator.curation.choose_caption import ChooseCaption
from orchestrator.curation.join_captions import JoinCaptions
from orchestrator.curation.rewrite_captions import RewriteCaptions, blip
from orchestrator.data.captions import CaptionPolicy, compose
from orchestrator.data.dataset import Caption


def original(text: str, lang: str = "en") -> Caption:
    return Caption("original", lang, text)


def of(*captions: tuple[Caption, ...], **made) -> Block:
    return Block(Ids(identities(len(captions))), {"captions": list(captions), **made})


@pytest.mark.parametrize(
    ("text", "prepared"),
    [
        ('A Dog! (brown) "Rex": #1; a*b~c.', "a dog brown rex 1 a b c"),
        ("two  blanks,\n\nand lines\n", "two blanks, and lines"),
        ("  already clean  ", "already clean"),
        ("it's a dog-house / shed?", "it's a dog-house / shed?"),
        ("...", ""),
        (" ".join(map(str, range(40))), " ".join(map(str, range(30)))),
    ],
)
def test_blips_preparation_of_captions(text, prepared):
    assert blip(text) == prepared


def test_behind_thirty_words_a_joined_caption_vanishes_in_blips_preparation():
    long, policy = " ".join(["word"] * 30), CaptionPolicy(join=["original", "generated"])
    both = (original(long), Caption("generated", "und", "a dog"))
    assert blip(compose(both, policy, [0.0] * 8, lambda text, most: text)) == long.replace("; a dog", "")
    assert blip(compose((original("rex"), both[1]), policy, [0.0] * 8, lambda text, most: text)) == "rex a dog"


def test_captions_are_rewritten_by_rules_and_empty_ones_go():
    block = of((original("File: A Dog.JPG"), Caption("keywords", "en", "DOG")), (original("File: .jpg"),))
    verdict = RewriteCaptions(remove=["^File: ", r"(?i)\.jpe?g$"], lower=True).judge(block)
    assert verdict.columns["captions"] == [(original("a dog"), Caption("keywords", "en", "dog")), ()]
    assert verdict.reasons.tolist() == ["", "no caption left"]
    assert verdict.counts == {"samples with captions changed": 2}
    alone = RewriteCaptions(style="blip", max_words=2, slots=["keywords"]).judge(
        of((original("A B C"), Caption("keywords", "en", "A, B; C")))
    )
    assert alone.columns["captions"] == [(original("A B C"), Caption("keywords", "en", "a, b"))]
    for wrong in ({}, {"remove": ["("]}):
        with pytest.raises(ValidationError, match="rewrite_captions"):
            RewriteCaptions.model_validate(wrong)


def test_the_wanted_caption_comes_first():
    short, german = Caption("short", "en", "dog"), original("Hund", "de")
    block = of((german, original("a dog"), short), (german,), (short, german))
    verdict = ChooseCaption(slots=["short", "original"], lang="en", required=True).judge(block)
    assert verdict.columns["captions"] == [(short, german, original("a dog")), (german,), (short, german)]
    assert verdict.reasons.tolist() == ["", "no such caption", ""]
    assert verdict.counts == {"another caption is first": 1}
    alone = ChooseCaption(lang="en", only=True).judge(block)
    assert alone.columns["captions"] == [(original("a dog"),), (german,), (short, german)]
    assert set(alone.reasons) == {""}


def test_captions_from_outside_are_joined_by_id_and_stand_behind_the_original(tmp_path):
    rows = {"key": ["b", "a", "b", "x"], "caption": ["b first", "a one", "b second", "nobody's"]}
    pq.write_table(pa.table(rows), tmp_path / "made.parquet")
    block = of((original("A"),), (original("B"),), (original("C"),), key=np.array(["a", "b", "c"], object))
    opened = SimpleNamespace(file=lambda source: tmp_path / source)
    operator = JoinCaptions.model_validate({"file": "made.parquet", "by": "key"})
    verdict = operator.open(opened)(block)
    texts = [[caption.text for caption in captions] for captions in verdict.columns["captions"]]
    assert texts == [["A", "a one"], ["B", "b first", "b second"], ["C"]]
    assert verdict.counts == {"captions added": 3}
    policy = CaptionPolicy(join=["original", "generated"])
    shown = [compose(captions, policy, [0.0] * 8, lambda text, most: text) for captions in verdict.columns["captions"]]
    assert shown == ["A; a one", "B; b first", "C"]
