"""The training stages: configuration, and their runner in this process on a tiny data set."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError
from stages_train_tiny import MODEL, make_store, run_stage

from orchestrator.errors import NotFiniteError, UserError
from orchestrator.models.artifact import load
from orchestrator.stages.train.config import Distill, Finetune, Pretrain

COMMON = {
    "data": "pairs",
    "model": MODEL,
    "batch": 8,
    "warmup_steps": 2,
    "report_every": 2,
    "augment": {"scale": [1.0, 1.0]},
}


def pretrain(**fields) -> Pretrain:
    return Pretrain.model_validate(COMMON | {"steps": 6} | fields)


def stop_after(steps: int):
    """A stop request that comes after so many steps."""
    asked = iter(range(steps - 1))
    return lambda: "cancelled" if next(asked, None) is None else None


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def teacher(stored, tmp_path_factory):
    store, data = stored
    return run_stage(store, pretrain(), tmp_path_factory.mktemp("teacher"), "pretrain", "a" * 64, {"data": data})


def test_pretraining_makes_a_model_that_loads_and_tells_what_it_did(teacher, stored):
    model, preprocess, tokenizer = load(teacher.handle)
    assert model.encode_image(torch.zeros(2, 3, preprocess.image_size, preprocess.image_size)).shape == (2, 32)
    assert model.encode_text(tokenizer(["a red square"])).shape == (1, 32)
    metrics = teacher.outcome.metrics
    assert {"loss", "loss_contrastive", "samples_per_s", "logit_scale"} <= set(metrics)
    assert metrics["parameters"] > metrics["parameters_without_token_table"] > 0
    assert teacher.outcome.summary["samples"] == 48
    assert teacher.outcome.summary["training_set_size"] < len(stored[1].read("index.parquet"))
    assert [e["samples"] for e in teacher.events.of("report")] == [16, 32, 48]
    assert [(e["done"], e["total"]) for e in teacher.events.of("progress")] == [(0, 48), (16, 48), (32, 48), (48, 48)]
    assert teacher.events.of("phase") == [{"type": "phase", "name": "train"}]


def test_only_the_train_split_is_seen(teacher, stored):
    from orchestrator.data.dataset import Dataset

    dataset = Dataset.open(stored[1])
    train = dataset.where(split="train")
    assert 0 < len(train) < len(dataset)
    assert teacher.outcome.summary["training_set_size"] == len(train)


def test_the_same_stage_gives_the_same_bytes(teacher, stored, tmp_path):
    again = run_stage(stored[0], pretrain(), tmp_path, "pretrain", "b" * 64, {"data": stored[1]})
    assert again.handle.manifest.content_digest == teacher.handle.manifest.content_digest


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_stopped_stage_goes_on_in_the_next_generation_to_the_same_bytes(teacher, stored, tmp_path, stop):
    store, data = stored
    fingerprint = f"{stop}" * 64
    first = run_stage(
        store, pretrain(), tmp_path, "pretrain", fingerprint, {"data": data}, should_stop=stop_after(stop)
    )
    assert first.outcome.stopped == "cancelled"
    assert list(first.out.iterdir()) == []
    second = run_stage(store, pretrain(), tmp_path, "pretrain", fingerprint, {"data": data}, generation=2)
    assert second.events.of("resumed") == [{"type": "resumed", "samples": stop * 8, "generation": 1}]
    assert second.outcome.summary["resumed_at_samples"] == stop * 8
    assert second.handle.manifest.content_digest == teacher.handle.manifest.content_digest
    points = {e["samples"]: e["metrics"]["loss"] for done in (first, second) for e in done.events.of("report")}
    assert points == {e["samples"]: e["metrics"]["loss"] for e in teacher.events.of("report")}


def test_only_the_last_checkpoints_are_kept(stored, tmp_path):
    from orchestrator.store.checkpoints import CheckpointStore

    config = pretrain(checkpoint_every=1, keep_checkpoints=2)
    run_stage(stored[0], config, tmp_path, "pretrain", "c" * 64, {"data": stored[1]})
    assert [ref.samples for ref in CheckpointStore(stored[0].storage, "c" * 64, 1).complete()] == [32, 40]


def test_distillation_with_inherited_weights_starts_nearer_to_its_teacher(teacher, stored, tmp_path):
    store, data = stored
    fields = COMMON | {"steps": 2, "report_every": 1, "teacher": "t", "learning_rate": 1e-6}
    inputs = {"data": data, "teacher": teacher.handle}
    scratch = run_stage(store, Distill.model_validate(fields | {"seed": 5}), tmp_path, "distill", "e" * 64, inputs)
    config = Distill.model_validate(fields | {"seed": 5, "init": {"from": "t"}})
    inherited = run_stage(store, config, tmp_path, "distill", "f" * 64, inputs | {"init.from": teacher.handle})
    first = [done.events.of("report")[0]["metrics"]["kl"] for done in (inherited, scratch)]
    assert first[0] < 1e-3 < first[1]


def test_finetuning_starts_from_the_given_weights(teacher, stored, tmp_path):
    store, data = stored
    config = Finetune.model_validate(
        COMMON | {"steps": 1, "init": {"from": "t"}, "learning_rate": 1e-9, "weight_decay": 0.0}
    )
    done = run_stage(store, config, tmp_path, "finetune", "9" * 64, {"data": data, "init.from": teacher.handle})
    one, other = (load(handle)[0].state_dict() for handle in (teacher.handle, done.handle))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-7, msg=name)


def test_a_teacher_of_another_image_size_is_refused(teacher, stored, tmp_path):
    shape = pretrain().model.open_clip
    shape = shape | {"vision_cfg": shape["vision_cfg"] | {"image_size": 64}}
    config = Distill.model_validate(COMMON | {"steps": 1, "teacher": "t", "model": {"open_clip": shape}})
    with pytest.raises(UserError, match="image"):
        run_stage(stored[0], config, tmp_path, "distill", "8" * 64, {"data": stored[1], "teacher": teacher.handle})


def test_a_loss_that_is_not_finite_keeps_the_ids_in_the_store(stored, tmp_path):
    store, data = stored
    config = pretrain(learning_rate=1e30, warmup_steps=0, clip_grad_norm=None)
    with pytest.raises(NotFiniteError) as caught:
        run_stage(store, config, tmp_path, "pretrain", "7" * 64, {"data": data})
    kept = [info.key for info in store.storage.list(f"work/{'7' * 64}/1") if "nonfinite" in info.key]
    assert len(kept) == 1
    assert caught.value.uids[0] in store.storage.get(kept[0]).decode()


def test_smoke_is_two_small_steps_that_run(stored, tmp_path):
    config = pretrain(
        model="emoji-96x4", epochs=30.0, steps=None, batch=4096, resources={"gpus": 8, "workers": 8}
    ).smoke()
    done = run_stage(stored[0], config, tmp_path, "pretrain", "6" * 64, {"data": stored[1]})
    assert done.outcome.summary["samples"] == 2 * config.batch
    assert done.outcome.metrics["parameters"] < 3e6


def test_precision_auto_is_resolved_before_identity():
    table = [
        ({}, "fp32"),
        ({"resources": {"gpus": 1}}, "bf16"),
        ({"resources": {"gpus": 1}, "precision": "fp32"}, "fp32"),
    ]
    for fields, expected in table:
        config = pretrain(**fields)
        assert config.precision == expected
        assert "precision" in config.model_fields_set
        assert Pretrain.model_validate_json(config.model_dump_json(by_alias=True)) == config


def test_work_is_known_where_it_does_not_depend_on_the_data():
    assert pretrain().work() == 48
    assert pretrain(steps=None, samples=50).work() == 56
    assert pretrain(steps=None, epochs=2.0).work() is None


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (Pretrain, {"method": "tinyclip"}, "needs a teacher"),
        (Distill, {"method": "clip", "teacher": "t"}, "no use for a teacher"),
        (Distill, {}, "teacher"),
        (Finetune, {}, "init"),
        (Pretrain, {"batch": 10, "resources": {"workers": 4}}, "cannot be shared by 4 workers"),
        (Pretrain, {"epochs": 1.0}, "exactly one of"),
    ],
)
def test_wrong_stages_are_refused(kind, fields, message):
    with pytest.raises(ValidationError, match=message):
        kind.model_validate(COMMON | {"steps": 1} | fields)


def test_configuration_needs_no_torch():
    heavy = "('torch', 'ray', 'mlflow', 'numpy')"
    code = f"import sys, orchestrator.stages.train.config; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_workers_error_for_people_reaches_them_without_rays_wrapping():
    from orchestrator.errors import DataError
    from orchestrator.stages.train.run import _for_people

    inner = DataError("too few samples", "use more")
    outer = RuntimeError("worker died")
    outer.__cause__ = inner
    assert _for_people({0: ValueError("other"), 1: outer}) is inner
    assert _for_people({0: ValueError("other")}) is None
