"""The Dataset: columns over a selection, reading what was indexed, and saying so when it is no longer there."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from data_shards import image, make_dataset, open_store, places, run_stage, write_samples, write_shard

from orchestrator.data import source
from orchestrator.data.dataset import Caption, Dataset
from orchestrator.data.location import is_shared
from orchestrator.errors import DataError, UserError
from orchestrator.io.storage import Storage
from orchestrator.recipe.schema import ExecutionOnly
from orchestrator.stages.dataset.config import DatasetStage


def facts(number: int) -> dict:
    return {"concept": f"c{number // 3}", "style": ["noto", "noto-v1", "fluent-emoji-flat"][number % 3]}


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    return make_dataset(tmp_path, str(write_samples(tmp_path / "pets", range(30), 3, facts)))


def test_samples_come_back_as_they_were_stored(dataset):
    assert (dataset.name, len(dataset)) == ("pets", 30)
    read = dataset.read([17, 0, 29, 0])
    assert [s.uid for s in read] == [dataset.uids[i] for i in (17, 0, 29, 0)]
    for place, found in zip((17, 0, 29, 0), read):
        number = int(dataset.column("caption")[place].split()[-1])
        assert found.image == image(number)
        assert found.captions == (Caption("original", "und", f"thing number {number}"),)


def test_rows_are_in_shard_order_and_columns_follow_them(dataset):
    assert dataset.column("caption")[:3].tolist() == ["thing number 0", "thing number 3", "thing number 6"]
    assert dataset.column("concept")[:3].tolist() == ["c0", "c1", "c2"]
    assert set(dataset.columns) >= {
        "uid",
        "image_digest",
        "caption",
        "key",
        "width",
        "height",
        "concept",
        "style",
        "split",
    }
    assert "label" not in dataset.columns
    uid = dataset.column("uid")[4]
    assert f"{uid['high']:016x}{uid['low']:016x}" == dataset.uids[4]


def test_where_and_take_select_without_losing_their_place(dataset):
    chosen = dataset.where(style="noto-v1").where(split="train")
    assert set(chosen.column("style")) == {"noto-v1"}
    reordered = chosen.take(range(len(chosen))[::-1])
    assert list(reordered.uids) == list(chosen.uids)[::-1]
    assert [s.uid for s in reordered.read(range(len(reordered)))] == list(reordered.uids)
    assert len(dataset.where(style="no such style")) == 0


def test_an_unknown_column_names_those_there_are(dataset):
    with pytest.raises(UserError, match=r"no column 'colour'[\s\S]*concept"):
        dataset.column("colour")


def test_a_replaced_image_is_noticed_when_it_is_read(tmp_path, dataset):
    path = tmp_path / "pets" / "00000.tar"
    path.write_bytes(path.read_bytes().replace(image(0), image(1)[: len(image(0))].ljust(len(image(0)), b"x")))
    with pytest.raises(DataError, match=r"00000\.tar, key 0000-0000.* not the image that was indexed"):
        dataset.read([1, 0])


def test_a_shard_that_is_gone_is_named(tmp_path, dataset):
    (tmp_path / "pets" / "00001.tar").unlink()
    with pytest.raises(DataError, match=r"00001\.tar"):
        dataset.read(range(30))


def test_equal_data_elsewhere_make_equal_tables_but_for_the_location(tmp_path):
    outcomes = []
    for name in ("here", "there"):
        folder = str(write_samples(tmp_path / name / "pets", range(12), 2, facts))
        store = open_store(tmp_path / name / "store")
        source.prepare(folder, store)
        handle, _ = run_stage(store, DatasetStage(source=folder), tmp_path / name, "dataset", "f1")
        outcomes.append(handle.manifest)
    assert outcomes[0].content_digest == outcomes[1].content_digest
    assert outcomes[0].files["location.json"] != outcomes[1].files["location.json"]


@pytest.mark.parametrize(
    ("store_url", "mode", "copied"),
    [("local", "auto", False), ("local", "copy", True), ("memory", "auto", True), ("memory", "reference", False)],
)
def test_shards_are_copied_where_workers_could_not_read_them(tmp_path, monkeypatch, store_url, mode, copied):
    monkeypatch.setenv("ORCH_CACHE", str(tmp_path / "cache"))
    store = open_store(tmp_path / "store" if store_url == "local" else f"memory://{tmp_path}")
    folder = write_samples(tmp_path / "pets", range(12), 2, facts)
    source.prepare(str(folder), store)
    stage = DatasetStage.model_validate({"source": str(folder), "import": mode})
    assert stage.copies(is_shared(str(folder)), store_url == "local") == copied
    if copied:
        source.copy_in(str(folder), store)
    handle, outcome = run_stage(store, stage, tmp_path, "dataset", "f1")
    assert outcome.summary["needs"] == [source.known(str(folder), store).place]
    assert not any(name.startswith("shards/") for name in handle.manifest.files)
    expected = [s.image for s in Dataset.open(handle).read(range(12))]
    if copied:
        for path in folder.iterdir():
            path.unlink()
    assert [s.image for s in Dataset.open(handle).read(range(12))] == expected


def test_a_dataset_in_an_object_store_reads_ranges(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCH_CACHE", str(tmp_path / "cache"))
    remote = Storage.open(f"memory://{tmp_path}/shards")
    for path in write_samples(tmp_path / "pets", range(12), 2, facts).iterdir():
        remote.put(path.name, path)
    dataset = make_dataset(tmp_path, f"memory://{tmp_path}/shards")
    assert [s.captions[0].text for s in dataset.read([5, 1])] == [f"thing number {n}" for n in (10, 2)]


def test_neither_source_nor_import_is_identity():
    fields = DatasetStage.model_fields
    marked = {name for name in fields if any(isinstance(m, ExecutionOnly) for m in fields[name].metadata)}
    assert {"source", "import_"} <= marked


def test_a_relative_path_is_made_absolute_where_the_recipe_is_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets").mkdir()
    assert DatasetStage(source="./x/{0..1}.tar").source == f"{tmp_path}/x/{{0..1}}.tar"
    assert DatasetStage(source="pets").source == f"{tmp_path}/pets"
    assert DatasetStage(source="emoji").source == "emoji"
    assert DatasetStage(source="s3://bucket/a").source == "s3://bucket/a"


def test_smoke_takes_the_sample_set_where_the_data_cannot_be_reached(tmp_path):
    folder = str(write_samples(tmp_path / "pets", range(4)))
    assert DatasetStage(source=folder).smoke().source == folder
    assert DatasetStage(source=f"{folder}/no").smoke().source == "emoji"


def test_a_held_out_style_that_the_data_do_not_have_is_refused_by_name(tmp_path):
    folder = write_samples(tmp_path / "pets", range(4), facts=lambda n: {"concept": "c", "style": f"s{n}"})
    with pytest.raises(UserError, match=r"fluent-emoji-flat.*s0, s1, s2, s3"):
        make_dataset(tmp_path, str(folder))


def test_data_without_concepts_are_trained_on_but_for_the_holdout(tmp_path):
    folder = str(write_samples(tmp_path / "pets", range(60)))
    assert set(make_dataset(tmp_path / "a", folder).column("split")) == {"train"}
    splits = make_dataset(tmp_path / "b", folder, split={"holdout": 0.3}).column("split")
    assert 5 < (splits == "id").sum() < 30


def test_shards_that_change_between_planning_and_running_are_refused(tmp_path):
    store, folder = open_store(tmp_path / "store"), write_samples(tmp_path / "pets", range(4))
    source.prepare(str(folder), store)
    stage = DatasetStage(source=str(folder))
    planned = places(store, stage)
    write_samples(folder, range(40))
    with pytest.raises(DataError, match="submit again"):
        run_stage(store, stage, tmp_path, "dataset", "f1", sources=planned)


def test_the_outcome_counts_splits_and_what_was_left_out(tmp_path):
    store, folder = open_store(tmp_path / "store"), write_samples(tmp_path / "pets", range(30), 3, facts)
    write_shard(folder / "00009.tar", [("a.txt", b"no image")])
    source.prepare(str(folder), store)
    handle, outcome = run_stage(store, DatasetStage(source=str(folder), max_bad=1), tmp_path, "dataset", "f1")
    assert outcome.metrics["samples"] == 30 == sum(v for k, v in outcome.metrics.items() if k.startswith("samples_"))
    assert outcome.summary["dropped"] == {"counts": {"no image": 1}, "examples": {"no image": ["00009.tar/a"]}}
    splits = np.unique(Dataset.open(handle).column("split"), return_counts=True)
    assert outcome.summary["splits"] == dict(zip(splits[0].tolist(), splits[1].tolist()))
    assert json.loads(handle.read("dataset.json"))["rows"] == 30


def test_the_sample_set_gives_the_protocols_splits(tmp_path):
    splits = Counter(make_dataset(tmp_path, "emoji").column("split").tolist())
    assert sum(splits.values()) == 3528
    assert splits["id"] >= 600
    assert splits["unseen"] == 3 * 118
    assert splits["ood"] == 1176 - 118
