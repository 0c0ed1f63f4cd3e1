"""Saved models: same bytes, same outputs, nothing but JSON and safetensors; external references."""

from __future__ import annotations

import json

import pytest
import torch

from orchestrator.data.preprocess import Preprocess, Tokenizer
from orchestrator.errors import OrchError, StageError, UserError
from orchestrator.models import catalog, external
from orchestrator.models.artifact import STRUCTURE, WEIGHTS, load, save
from orchestrator.models.external import external_capabilities, identify_external, load_external, random_like
from orchestrator.models.open_clip_bridge import create

PREPROCESS = Preprocess(32, mean=(0.1, 0.2, 0.3), background=(0, 0, 0))
TOKENIZER = Tokenizer(context_length=24)


@pytest.fixture
def folder(tmp_path):
    save(create(catalog.resolve("tiny"), seed=3), PREPROCESS, TOKENIZER, tmp_path)
    return tmp_path


def edit(folder, **changes):
    described = json.loads((folder / STRUCTURE).read_text())
    (folder / STRUCTURE).write_text(json.dumps(described | changes))


def test_a_loaded_model_gives_the_same_bits(folder):
    original = create(catalog.resolve("tiny"), seed=3).eval()
    model, preprocess, tokenizer = load(folder)
    images, tokens = torch.randn(2, 3, 32, 32), tokenizer(["a red apple", "cat"])
    assert torch.equal(model.encode_image(images), original.encode_image(images))
    assert torch.equal(model.encode_text(tokens), original.encode_text(tokens))
    assert (preprocess, tokenizer) == (PREPROCESS, TOKENIZER)
    assert not model.training


def test_a_finished_artifact_loads_by_its_handle(folder):
    from orchestrator.store.artifacts import Handle

    class OnDisk(Handle):
        def local(self, name):
            return folder / name

    model, *_ = load(OnDisk(store=None, manifest=None))
    assert torch.equal(model.logit_scale, create(catalog.resolve("tiny")).logit_scale)


def test_bytes_are_the_same_wherever_it_is_saved(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    model = create(catalog.resolve("tiny"), seed=3).train().requires_grad_(False)
    save(model, PREPROCESS, TOKENIZER, other)
    for name in (STRUCTURE, WEIGHTS):
        assert (folder / name).read_bytes() == (other / name).read_bytes()
    assert {path.name for path in folder.iterdir()} == {STRUCTURE, WEIGHTS}


def test_the_structure_tells_shapes_capabilities_and_sizes(folder):
    described = json.loads((folder / STRUCTURE).read_text())
    assert described["capabilities"] == ["encode_image", "encode_text", "score"]
    assert described["tensors"]["network.visual.conv1.weight"] == {"shape": [32, 3, 8, 8], "dtype": "float32"}
    assert described["parameters"]["without_token_table"] == 47_841


@pytest.mark.parametrize(
    "name", ["os:system", "torch.nn:Module", "orchestrator.errors:OrchError", "orchestrator.models.catalog:check"]
)
def test_only_models_of_this_package_are_built(folder, name):
    edit(folder, structure={"class": name, "config": {}})
    with pytest.raises(StageError, match="not a model of"):
        load(folder)


def test_weights_of_another_shape_are_refused(folder):
    config = catalog.resolve("tiny") | {"embed_dim": 48}
    edit(folder, structure={"class": "orchestrator.models.clip:OpenClipModel", "config": config})
    with pytest.raises(StageError, match=r"does not fit.*text_projection"):
        load(folder)


def test_another_format_is_refused(folder):
    edit(folder, format=99)
    with pytest.raises(StageError, match="format 99"):
        load(folder)


def test_an_empty_folder_is_no_model(tmp_path):
    with pytest.raises(StageError, match="is not a model"):
        load(tmp_path)


def test_a_folder_is_identified_by_its_content(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    save(create(catalog.resolve("tiny"), seed=3), PREPROCESS, TOKENIZER, other)
    assert identify_external(str(folder)) == identify_external(str(other))
    save(create(catalog.resolve("tiny"), seed=4), PREPROCESS, TOKENIZER, other)
    assert identify_external(str(folder)) != identify_external(str(other))
    assert external_capabilities(str(folder)) == {"encode_image", "encode_text", "score"}
    assert load_external(str(folder))[1] == PREPROCESS


def test_published_weights_are_identified_by_name_and_tag():
    assert identify_external("open_clip:ViT-B-32/laion2b-s34b_B79K") == "open_clip:ViT-B-32/laion2b_s34b_b79k"
    assert identify_external("hf-hub:laion/some-model@abc") == "hf-hub:laion/some-model@abc"
    assert "encode_text" in external_capabilities("open_clip:ViT-B-32/openai")


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("open_clip:ViT-B-33/openai", "unknown model"),
        ("open_clip:ViT-B-32", "names no weights"),
        ("open_clip:coca_ViT-B-32/laion2b_s13b_b90k", "generative"),
        ("./nowhere", "is not a model"),
    ],
)
def test_references_that_mean_nothing_are_refused(reference, expected):
    with pytest.raises(UserError, match=expected):
        identify_external(reference)


def test_unknown_tags_are_answered_with_the_known_ones():
    with pytest.raises(UserError, match="openai, laion400m_e31"):
        load_external("open_clip:ViT-B-32/laion9b")


@pytest.mark.parametrize("reference", ["open_clip:ViT-B-32/openai", "hf-hub:laion/some-model"])
def test_a_failed_download_is_a_user_error(reference, monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("open_clip.pretrained.download_pretrained", fail)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(OrchError, match=r"cannot be downloaded.*no route to host") as error:
        load_external(reference)
    assert isinstance(error.value, UserError)


def test_downloaded_weights_load_with_the_tags_activation_and_colours(tmp_path, monkeypatch):
    config = catalog.small(catalog.resolve("ViT-B-32"))
    saved = create(config | {"quick_gelu": True}, seed=9)
    path = tmp_path / "weights.pt"
    torch.save(saved.network.state_dict(), path)
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", lambda known: str(path))
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIGS", {"ViT-B-32": config})
    monkeypatch.setattr(external.catalog, "resolve", lambda name: dict(config))
    model, preprocess, tokenizer = load_external("open_clip:ViT-B-32/openai")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.encode_image(images), saved.eval().encode_image(images))
    assert model.structure()["config"]["quick_gelu"] is True
    assert preprocess == Preprocess(32)
    assert tokenizer.context_length == 77


@pytest.mark.parametrize(
    ("reference", "kind"),
    [("open_clip:ViT-B-32/openai", "ViT"), ("open_clip:RN50/openai", "ResNet"), ("hf-hub:a/b", "ViT")],
)
def test_random_stand_ins_are_small_and_of_the_same_kind(reference, kind):
    model, preprocess, tokenizer = random_like(reference)
    assert hasattr(model.network.visual, "layer1") == (kind == "ResNet")
    assert model.encode_image(torch.zeros(1, 3, preprocess.image_size, preprocess.image_size)).shape == (1, 32)
    assert tokenizer.context_length == 77


def test_a_folder_has_a_random_stand_in_too(folder):
    assert random_like(str(folder))[2].context_length == 24
