"""Model shapes by name and in place: what resolves, what is refused and how it is said, what identity they have."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
from pydantic import ValidationError

from orchestrator.errors import UserError
from orchestrator.models import catalog
from orchestrator.models.config import Init, ModelSpec
from orchestrator.models.open_clip_bridge import create, open_clip
from orchestrator.plan.fingerprint import encode
from orchestrator.recipe.schema import Config, Model, references


class Stage(Config):
    """A stand-in for a stage with a model."""

    model: ModelSpec
    init: Init | None = None


def message(model: object) -> str:
    with pytest.raises(ValidationError) as error:
        Stage.model_validate({"model": model})
    return str(error.value)


def tiny(**changes: object) -> dict:
    return catalog.resolve("tiny") | changes


def test_shipped_and_open_clip_shapes_resolve():
    assert catalog.resolve("emoji-96x4")["vision_cfg"]["width"] == 96
    assert catalog.resolve("ViT-B-32")["embed_dim"] == 512
    assert catalog.shipped() == ["captioner-64x4", "emoji-64x3", "emoji-96x3", "emoji-96x4", "tiny"]


@pytest.mark.parametrize("name", [*catalog.shipped(), "ViT-B-32", "RN50", "ViT-B-32-quickgelu", "EVA02-B-16"])
def test_usable_shapes_pass_the_check(name):
    catalog.check(catalog.resolve(name))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("emoji-96x5", "Did you mean 'emoji-96x4'?"),
        ("vit-b-32", "Did you mean 'ViT-B-32'?"),
        ("nothing like it", "Shipped: captioner-64x4"),
        ("coca_ViT-B-32", "generative models"),
        ("ViT-B-16-SigLIP", "tokenizer other than CLIP's"),
        ({"open_clip": {"embed_dim": 3}}, "needs 'vision_cfg'"),
        ({"open_clip": tiny(vision_cfg={"widht": 64})}, "'vision_cfg.widht'. Did you mean 'width'?"),
        ({"open_clip": tiny(quickgelu=True)}, "Did you mean 'quick_gelu'?"),
        (
            {"open_clip": tiny(vision_cfg={"width": 70, "head_width": 32})},
            "width 70 is not a multiple of head_width 32",
        ),
        ({"open_clip": tiny(vision_cfg={"image_size": 30, "patch_size": 8})}, "image_size 30 is not a multiple"),
        ({"open_clip": tiny(text_cfg={"width": 96, "heads": 7})}, "text_cfg: width 96 is not a multiple of heads 7"),
        ({"open_clip": tiny(vision_cfg={"image_size": [32, 64]})}, "images of 32x64 pixels"),
        ({"open_clip": tiny(vision_cfg=3)}, "vision_cfg must be a mapping"),
        ({"name": "tiny", "open_clip": tiny()}, "written as its name"),
        (3, "valid dictionary"),
    ],
)
def test_wrong_models_are_refused_with_the_way_out(model, expected):
    assert expected in message(model)


def test_a_shape_spelled_out_is_the_shape_by_name():
    by_name = Stage.model_validate({"model": "tiny"})
    in_place = Stage.model_validate({"model": {"open_clip": catalog.resolve("tiny")}})
    encoded = [encode(stage, Stage, (), {}) for stage in (by_name, in_place)]
    assert encoded[0] == encoded[1]
    assert encoded[0]["model"]["open_clip"]["embed_dim"] == 32
    other = Stage.model_validate({"model": {"open_clip": tiny(embed_dim=48)}})
    assert encode(other, Stage, (), {}) != encoded[0]


@pytest.mark.parametrize("model", ["tiny", {"open_clip": tiny(embed_dim=48)}])
def test_a_model_is_written_back_as_it_was(model):
    stage = Stage.model_validate({"model": model})
    assert stage.model_dump(mode="json")["model"] == model
    assert Stage.model_validate(stage.model_dump(mode="json")) == stage


def test_init_refers_to_a_model_and_depends_on_surgery():
    stage = Stage.model_validate({"model": "tiny", "init": {"from": "teacher"}})
    ((path, reference),) = references(stage)
    assert path == ("init", "from")
    assert reference == "teacher"
    assert reference.artifact is Model
    assert "surgery" in stage.init.versions()
    with pytest.raises(ValidationError):
        Init.model_validate({"from": "teacher", "mode": "auto"})


def test_sizes_are_known_without_building():
    spec = Stage.model_validate({"model": "ViT-B-32"}).model
    assert (spec.image_size, spec.context_length) == (224, 77)
    assert "encode_image" in spec.capabilities


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50", "emoji-96x4", "ViT-B-32-quickgelu", "convnext_base"])
def test_smoke_shapes_are_small_build_and_keep_kind_and_vocabulary(name):
    spec = Stage.model_validate({"model": name}).model
    small = spec.smoke()
    model = create(small.open_clip)
    assert small.context_length == spec.context_length
    assert small.open_clip["vision_cfg"]["width"] <= 32
    assert hasattr(model.network.visual, "layer1") == (name == "RN50")
    assert small.open_clip.get("quick_gelu") == spec.open_clip.get("quick_gelu")


def test_the_known_settings_are_those_of_the_installed_open_clip():
    package = open_clip()
    vision = {field.name for field in dataclasses.fields(package.CLIPVisionCfg)}
    text = {field.name for field in dataclasses.fields(package.CLIPTextCfg)}
    assert vision >= catalog.VISION
    assert text >= catalog.TEXT


def test_an_unknown_name_is_a_user_error():
    with pytest.raises(UserError, match="unknown model"):
        catalog.resolve("emoji")


def test_catalog_and_configuration_load_no_torch_and_no_open_clip():
    code = (
        "import sys, orchestrator.models.config, orchestrator.models.external, orchestrator.models.catalog as c\n"
        "c.resolve('ViT-B-32')\norchestrator.models.external.identify_external('open_clip:ViT-B-32/openai')\n"
        "assert not {'torch', 'open_clip', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
