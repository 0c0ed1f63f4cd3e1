"""The protocol on a toy world where the right figures are known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from evaluation_toy import PREPROCESS, ToyDataset, ToyModel, broken, tokenize
from pydantic import ValidationError

from orchestrator.errors import NotFiniteError, UserError
from orchestrator.evaluation.config import Retrieval, ZeroShot
from orchestrator.evaluation.encode import BadImages, encode
from orchestrator.evaluation.figures import describe, figures, predictions
from orchestrator.evaluation.protocol import galleries, retrieval, zeroshot


def answer(dataset, measures, model, batch=16):
    rows = sorted({int(row) for measure in measures for row in measure.image_rows})
    texts = sorted({text for measure in measures for text in measure.texts})
    encoded = encode(
        model, PREPROCESS, tokenize, dataset, rows, texts, batch=batch, threads=1, tick=lambda count: None
    )
    return {measure.name: measure.rank(encoded) for measure in measures}


def ask(dataset, zero=None, ret=None):
    return zeroshot(zero or ZeroShot(), dataset) + retrieval(ret or Retrieval(), dataset)


def evaluate(dataset, *models, batch=16, **tasks):
    measures = ask(dataset, **tasks)
    return measures, figures(measures, [answer(dataset, measures, model, batch) for model in models], 50, 0)


def test_a_perfect_model_gets_everything_right():
    measures, (flat, _) = evaluate(ToyDataset.make(), ToyModel())
    for measure in measures:
        for k in measure.ks:
            name = f"{measure.name}.{measure.label}{k}"
            assert [flat[0][name], flat[0][f"{name}.low"], flat[0][f"{name}.high"]] == [1, 1, 1], name
    assert flat[0]["zeroshot.ood.mean_class_recall"] == 1


def test_classes_are_the_training_concepts_and_for_unseen_the_unseen_alone():
    sizes = {measure.name: measure.sizes for measure in ask(ToyDataset.make())}
    assert sizes["zeroshot.id"] == {"n": 5, "classes": 20, "without_class": 0}
    assert sizes["zeroshot.ood"] == {"n": 20, "classes": 20, "without_class": 0}
    assert sizes["zeroshot.unseen"] == {"n": 12, "classes": 4, "without_class": 0}


def test_chance_is_k_over_classes_and_a_k_above_the_classes_is_left_out():
    measures = {measure.name: describe(measure) for measure in ask(ToyDataset.make())}
    assert measures["zeroshot.ood"]["chance"] == pytest.approx([1 / 20, 5 / 20])
    assert measures["zeroshot.unseen"]["ks"] == [1]


def test_a_concept_without_training_cell_is_left_out_and_counted():
    whole = ToyDataset.make()
    concept, split = whole.column("concept"), whole.column("split")
    dataset = whole.take([row for row in range(len(whole)) if concept[row] != "k002" or split[row] != "train"])
    sizes = {measure.name: measure.sizes for measure in zeroshot(ZeroShot(), dataset)}
    assert sizes["zeroshot.ood"] == {"n": 19, "classes": 19, "without_class": 1}


def test_retrieval_stays_within_one_style_where_no_other_image_shows_the_concept():
    dataset = ToyDataset.make()
    found = galleries(Retrieval(splits=["train", "id", "ood"]), dataset)
    assert [(gallery.split, gallery.style, len(gallery.rows)) for gallery in found] == [
        ("train", "a", 20),
        ("train", "b", 15),
        ("id", "b", 5),
        ("ood", "z", 20),
    ]
    for gallery in found:
        assert len(set(gallery.texts)) == len(gallery.texts)


def test_retrieval_pools_styles_but_scores_each_alone():
    measures = {m.name: m for m in retrieval(Retrieval(splits=["train"]), ToyDataset.make())}
    one = measures["retrieval.train.text_to_image"]
    assert one.sizes == {"n": 35, "images": 35, "texts": 35, "styles": 2}
    assert sorted(set(one.candidates)) == [15, 20]
    assert describe(one)["chance"][0] == pytest.approx(2 / 35)


def test_captions_like_the_primary_one_are_texts_and_others_are_not():
    dataset = ToyDataset.make(captions=3)
    (gallery,) = galleries(Retrieval(splits=["ood"]), dataset)
    assert len(gallery.texts) == 60
    assert "thing" not in gallery.texts
    assert retrieval(Retrieval(splits=["ood"]), dataset)[0].positives.tolist() == [3] * 20


def test_results_do_not_depend_on_the_order_of_the_data_or_the_batch():
    dataset = ToyDataset.make()
    shuffled = dataset.take(np.random.default_rng(0).permutation(len(dataset)).tolist())
    measures, once = evaluate(dataset, ToyModel(90), ToyModel(120), batch=7)
    again_measures, again = evaluate(shuffled, ToyModel(90), ToyModel(120), batch=64)
    assert once == again
    assert 0 < once[0][0]["zeroshot.ood.top1"] < 1
    ranks = [answer(dataset, measures, ToyModel(90))]
    again_ranks = [answer(shuffled, again_measures, ToyModel(90))]
    assert predictions(measures, ranks, dataset.uids).equals(predictions(again_measures, again_ranks, shuffled.uids))


def test_paired_comparisons_repeat_and_mirror_each_other():
    _, (flat, pairs) = evaluate(ToyDataset.make(), ToyModel(90), ToyModel())
    assert pairs == evaluate(ToyDataset.make(), ToyModel(90), ToyModel())[1][1]
    by = {(pair["model"], pair["against"]): pair["figures"]["zeroshot.ood.top1"] for pair in pairs}
    assert by[0, 1]["difference"] == pytest.approx(-by[1, 0]["difference"])
    assert by[0, 1]["ratio"] == pytest.approx(flat[0]["zeroshot.ood.top1"])
    assert by[1, 0]["ratio.low"] >= 1


def test_data_without_concepts_are_refused_by_zero_shot_naming_the_columns_there_are():
    with pytest.raises(UserError, match="'style', 'split'") as refused:
        zeroshot(ZeroShot(), ToyDataset.make(columns=("style", "split")))
    assert "retrieval" in refused.value.remedy


def test_data_without_any_column_are_retrieved_as_one_gallery():
    dataset = ToyDataset.make(columns=())
    (gallery,) = galleries(Retrieval(), dataset)
    assert (gallery.split, len(gallery.rows)) == ("all", len(dataset))


def test_labelled_data_without_splits_are_classified_as_a_whole():
    (measure,) = zeroshot(ZeroShot(), ToyDataset.make(columns=("concept",)))
    assert (measure.name, measure.sizes["classes"]) == ("zeroshot.all", 24)


@pytest.mark.parametrize(("task", "config"), [(zeroshot, ZeroShot), (retrieval, Retrieval)])
def test_a_split_that_is_asked_for_but_not_there_is_refused_naming_those_there_are(task, config):
    with pytest.raises(UserError, match=r"'val'.*'id', 'ood', 'train', 'unseen'"):
        task(config(splits=["id", "val"]), ToyDataset.make())


def test_max_samples_takes_the_first_by_uid():
    dataset = ToyDataset.make()
    (gallery,) = galleries(Retrieval(splits=["ood"], max_samples=6), dataset)
    uids = np.asarray(dataset.uids)
    ood = np.flatnonzero(dataset.column("split") == "ood")
    assert uids[gallery.rows].tolist() == sorted(uids[ood])[:6]


def test_a_diverged_model_is_refused_instead_of_ranked_first():
    dataset, model = ToyDataset.make(), ToyModel()
    model.phase.data.fill_(math.nan)
    with pytest.raises(NotFiniteError):
        answer(dataset, zeroshot(ZeroShot(), dataset), model)


def test_undecodable_images_are_named_instead_of_silently_left_out():
    dataset = ToyDataset.make()
    bad = {broken(dataset, row) for row in (50, 70)}
    with pytest.raises(BadImages) as found:
        answer(dataset, zeroshot(ZeroShot(), dataset), ToyModel())
    assert {dataset.uids[row] for row in found.value.rows} == bad


def test_scores_come_from_the_model_and_not_from_a_dot_product():
    class Reversed(ToyModel):
        def score(self, image_features, text_features):
            return -super().score(image_features, text_features)

    _, (flat, _) = evaluate(ToyDataset.make(), Reversed())
    assert flat[0]["zeroshot.ood.top1"] == 0


def test_no_figure_of_any_kind_is_nan_when_models_get_nothing_right():
    class Constant(ToyModel):
        def score(self, image_features, text_features):
            return 0 * super().score(image_features, text_features)

    _, results = evaluate(ToyDataset.make(), Constant(), Constant())
    json.dumps(results, allow_nan=False)


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (ZeroShot, {"templates": ["a drawing"]}),
        (ZeroShot, {"ks": [5, 1]}),
        (Retrieval, {"ks": [0]}),
        (Retrieval, {"max_samples": 0}),
        (Retrieval, {"splits": []}),
    ],
)
def test_wrong_settings_are_refused(config, wrong):
    with pytest.raises(ValidationError):
        config(**wrong)
