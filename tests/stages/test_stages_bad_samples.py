"""Data that are not what they should be, from the shards to the stages: counted and left out, or one clear error."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from stages_train_tiny import COLOURS, Done, make_store, run_stage

from orchestrator.data import source
from orchestrator.data.dataset import Dataset
from orchestrator.errors import DataError
from orchestrator.stages.dataset.config import DatasetStage, SplitConfig
from orchestrator.stages.embed.config import EmbedStage
from orchestrator.stages.evaluate.config import EvaluateStage
from orchestrator.stages.train.config import Pretrain
from orchestrator.store.artifacts import Handle, Store

TRAIN = {
    "data": "pairs",
    "model": "tiny",
    "batch": 8,
    "steps": 12,
    "warmup_steps": 2,
    "report_every": 2,
    "checkpoint_every": 2,
    "max_bad": 20,
}
BROKEN = (3, 17, 30, 44, 61)
"""Samples whose image ends after its header: a whole shard of them would be read without complaint by an index."""


def write(folder: Path, count: int = 80, num_shards: int = 2) -> Path:
    """Coloured squares, a few of which cannot be decoded."""
    folder.mkdir(parents=True)
    for shard in range(num_shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(shard, count, num_shards):
                image = io.BytesIO()
                picture = Image.new("RGB", (32, 32), "white")
                picture.paste(COLOURS[number % len(COLOURS)], (0, 0, 4 + number // 4, 9))
                picture.save(image, "PNG")
                data = image.getvalue()[: 60 if number in BROKEN else None]
                for suffix, content in (("png", data), ("txt", f"square number {number}".encode())):
                    info = tarfile.TarInfo(f"{number:05d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


@dataclass
class Damaged:
    """A store whose one data set has samples that cannot be decoded."""

    shards: Path
    store: Store
    data: Handle

    def train(self, folder: Path, fingerprint: str, **options) -> Done:
        settings = {k: options.pop(k) for k in ("generation", "should_stop", "resources") if k in options}
        config = Pretrain.model_validate(TRAIN | options)
        return run_stage(self.store, config, folder, "pretrain", fingerprint * 64, {"data": self.data}, **settings)


def make(folder: Path) -> Damaged:
    shards, store = write(folder / "shards"), Store.open(str(folder / "store"))
    source.prepare(str(shards), store)
    config = DatasetStage(source=str(shards), split=SplitConfig(holdout=0.3))
    return Damaged(shards, store, run_stage(store, config, folder, "dataset", "d" * 64).handle)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> Damaged:
    return make(tmp_path_factory.mktemp("damaged"))


@pytest.fixture(scope="module")
def trained(damaged, tmp_path_factory) -> Done:
    return damaged.train(tmp_path_factory.mktemp("trained"), "a", validation={"every_samples": 48})


def test_bad_images_are_counted_told_and_left_out_of_training_and_validation(damaged, trained):
    found = trained.outcome.summary["bad_samples"]
    assert found["counts"] == {"image cannot be decoded": len(BROKEN)}
    assert all(".tar, key 000" in example for example in found["examples"]["image cannot be decoded"])
    told = [event["text"] for event in trained.events.of("message")]
    assert sum("left out: sample" in text for text in told) == len(BROKEN)
    splits = Dataset.open(damaged.data).column("split").tolist()
    assert {"train", "id"} == set(splits)


@pytest.mark.parametrize("stop", [3, 9])
def test_a_training_with_bad_images_goes_on_to_the_same_bytes_and_the_same_count(damaged, trained, tmp_path, stop):
    asked = iter(range(stop - 1))
    first = damaged.train(
        tmp_path,
        str(stop),
        should_stop=lambda: "cancelled" if next(asked, None) is None else None,
        validation={"every_samples": 48},
    )
    assert first.outcome.stopped == "cancelled"
    done = damaged.train(tmp_path, str(stop), generation=2, validation={"every_samples": 48})
    assert done.handle.manifest.content_digest == trained.handle.manifest.content_digest
    assert done.outcome.summary["bad_samples"]["counts"] == trained.outcome.summary["bad_samples"]["counts"]


def test_one_more_than_the_limit_fails_and_raising_it_goes_on_from_the_checkpoint(damaged, trained, tmp_path):
    options = {"validation": {"every_samples": 48}}
    with pytest.raises(DataError, match=r"3 of the 80 samples .* 2 allowed \(max_bad: 2\)") as failed:
        damaged.train(tmp_path, "b", max_bad=2, **options)
    assert "raise `max_bad`" in failed.value.remedy
    done = damaged.train(tmp_path, "b", generation=2, **options)
    assert done.handle.manifest.content_digest == trained.handle.manifest.content_digest


def stages(trained: Done) -> dict:
    model = {"model": trained.handle, "models.0": trained.handle}
    return {
        "pretrain": (Pretrain.model_validate(TRAIN), {}),
        "embed": (EmbedStage.model_validate({"model": "m", "data": "pairs", "batch": 8, "max_bad": 20}), model),
        "evaluate": (
            EvaluateStage.model_validate({"models": ["m"], "data": "pairs", "tasks": ["retrieval"], "max_bad": 20}),
            model,
        ),
    }


DAMAGE = {
    "gone": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:20_000]),
    "overwritten": lambda path: path.write_bytes(bytes(reversed(path.read_bytes()))),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
@pytest.mark.parametrize("kind", ["pretrain", "embed", "evaluate"])
def test_a_shard_that_changed_after_indexing_is_refused_by_name_however_many_bad_samples_are_allowed(
    kind, damage, trained, tmp_path
):
    data = make(tmp_path)
    DAMAGE[damage](data.shards / "00001.tar")
    config, inputs = stages(trained)[kind]
    with pytest.raises(DataError, match=r"00001\.tar") as failed:
        run_stage(data.store, config, tmp_path, kind, "c" * 64, {"data": data.data, **inputs})
    assert "put them back" in failed.value.remedy
    assert str(data.shards) in failed.value.message


@pytest.mark.parametrize(("after", "message"), [(20_000, "shorter"), (0, "shorter"), (None, "is gone")])
@pytest.mark.parametrize("place", ["local", "memory"])
def test_a_shard_that_is_cut_off_while_it_is_read_is_named(after, message, place, tmp_path):
    from orchestrator.data.shards import Shards
    from orchestrator.io.storage import Storage

    shard = write(tmp_path / "shards") / "00000.tar"
    storage = Storage.open(str(shard.parent) if place == "local" else f"memory://{tmp_path}")
    if after is None:
        shard.unlink()
    elif place == "local":
        shard.write_bytes(shard.read_bytes()[:after])
    else:
        storage.put("00000.tar", shard.read_bytes()[:after])
    with pytest.raises(DataError, match=rf"00000\.tar {message}|00000\.tar is {message}"):
        Shards(storage, "", ["00000.tar"]).read(0, [512, 30_000], [700, 30_100])


def test_data_with_more_bad_samples_than_allowed_are_refused_with_every_reason(tmp_path):
    folder = write(tmp_path / "shards", num_shards=3)
    with tarfile.open(folder / "00003.tar", "w") as tar:
        for name, content in (("x.txt", b"no image"), ("y.png", b"no image"), ("y.txt", b"text")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (folder / "00001.tar").write_bytes((folder / "00001.tar").read_bytes()[:20_000])
    store = Store.open(str(tmp_path / "store"))
    source.prepare(str(folder), store)

    def dataset(fingerprint: str, max_bad: float) -> Done:
        config = DatasetStage(source=str(folder), max_bad=max_bad)
        return run_stage(store, config, tmp_path, "dataset", fingerprint * 64)

    with pytest.raises(DataError) as failed:
        dataset("1", 0.01)
    for reason in ("no image: 1 (00003.tar/x)", "not an image: 1 (00003.tar/y)", "shard is truncated: 1 (00001.tar)"):
        assert reason in failed.value.message
    assert "lost with a damaged shard (estimated)" in failed.value.message
    made = dataset("2", 0.5)
    (told,) = made.events.of("message")
    assert "no image: 1" in told["text"]
    assert made.outcome.metrics["samples"] + made.outcome.metrics["dropped"] >= 80


def test_an_unused_import_of_a_clean_store_counts_nothing(tmp_path):
    store, data = make_store(tmp_path)
    config = Pretrain.model_validate(TRAIN | {"steps": 2})
    done = run_stage(store, config, tmp_path, "pretrain", "e" * 64, {"data": data})
    assert done.outcome.summary["bad_samples"] == {"counts": {}, "examples": {}}
