"""Captions that a captioner writes: the same in any batch, beside the originals, only where they are wanted."""

from __future__ import annotations

from types import SimpleNamespace

import curation_lab  # noqa: F401 (makes data_shards importable)
import numpy as np
import pytest
import torch
from data_shards import make_dataset, sample, write_shard

from orchestrator.curation.block import Block
from orchestrator.curation.generate_captions import GenerateCaptions
from orchestrator.data.dataset import Caption
from orchestrator.data.preprocess import Preprocess, Tokenizer
from orchestrator.models.captioner import Book, Captioner

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def tools():
    model = Captioner.create(CONFIG, Book(codes=16, vocabulary=64)).eval()
    tokenizer = Tokenizer(context_length=12)
    words = tokenizer(["red blue green dark light thing number picture of a small large"])[0].tolist()
    model.ids.copy_(model.complete(words))
    with torch.no_grad():  # as if it were trained: what it writes depends on the image
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return SimpleNamespace(
        model=lambda name: (model, Preprocess(16), tokenizer), device=torch.device("cpu"), tokenizer=tokenizer
    )


@pytest.fixture
def block(tmp_path):
    members = [member for n in range(13) for member in sample(f"{n:04d}", n)]
    broken = sample("0013", 13)
    broken[0] = (broken[0][0], broken[0][1][:60])
    write_shard(tmp_path / "pets" / "00000.tar", [*members, *broken])
    return Block(make_dataset(tmp_path, str(tmp_path / "pets")), {})


def judged(tools, block, **options):
    return GenerateCaptions.model_validate({"model": "captioner", "max_tokens": 8, **options}).open(tools)(block)


@pytest.mark.parametrize("beams", [1, 3])
def test_captions_are_the_same_in_any_batch(tools, block, beams):
    whole = judged(tools, block, beams=beams)
    assert whole.counts == {"captions written": 13}
    for batch in (1, 5):
        assert judged(tools, block, beams=beams, batch=batch).columns["captions"] == whole.columns["captions"]
    assert len({captions[-1].text for captions in whole.columns["captions"]}) > 1


def test_token_ids_are_spelt_as_the_text_they_stand_for(tools):
    texts = ["a small red thing", "naïve café, 42", "x " * 40]
    spelt = [tools.tokenizer.spell(ids) for ids in tools.tokenizer(texts).tolist()]
    assert spelt == ["a small red thing", "naïve café , 4 2", " ".join("x" * 10)]


def test_a_generated_caption_stands_behind_the_original(tools, block):
    verdict = judged(tools, block)
    for before, after in zip(block.captions, verdict.columns["captions"][:13]):
        assert after[:-1] == before
        assert (after[-1].slot, after[-1].lang) == ("generated", "und")
        assert after[-1].text
    assert verdict.reasons[:13].tolist() == [""] * 13
    assert verdict.reasons[13] == "image cannot be decoded"


def test_samples_that_have_one_keep_it_unless_it_is_to_be_written_anew(tools, block):
    there = [(*captions, Caption("generated", "en", "by hand")) for captions in block.captions]
    first_four = Block(block.data, {"captions": there}).where(np.arange(4))
    assert judged(tools, first_four).columns["captions"] == there[:4]
    anew = judged(tools, first_four, anew=True)
    assert anew.columns["captions"] == judged(tools, block).columns["captions"][:4]
