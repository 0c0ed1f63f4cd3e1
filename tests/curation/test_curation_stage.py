"""How a `curate` stage runs operators: the same result for any blocks, shards and interruptions; nothing twice."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "data"))
sys.path.insert(0, str(Path(__file__).parent))
import toy_operators
from data_shards import open_store, run_stage, write_samples
from toy_operators import AboveMean, Fail, OneOfEach, Shout, Twice

from orchestrator.data import source
from orchestrator.data.dataset import Dataset
from orchestrator.errors import UserError
from orchestrator.stages.curate import run as curate_run
from orchestrator.stages.curate.config import CurateStage
from orchestrator.stages.dataset.config import DatasetStage
from orchestrator.store.parts import Parts


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    monkeypatch.setattr(curate_run, "OPERATORS", toy_operators.TABLE)


def pairs(tmp_path, numbers, shards, name="pets"):
    store = open_store(tmp_path / "store")
    folder = write_samples(tmp_path / name, numbers, shards)
    source.prepare(str(folder), store)
    return store, run_stage(store, DatasetStage(source=str(folder)), tmp_path, "dataset", name.ljust(64, "a"))[0]


def curated(tmp_path, store, data, steps, fingerprint="b" * 64):
    stage = CurateStage.model_construct(data="pairs", steps=steps)
    return run_stage(store, stage, tmp_path, "curate", fingerprint, {"data": data})[0]


STEPS = [Shout(), AboveMean(column="length"), OneOfEach(column="length"), AboveMean(column="place"), Twice()]


def what(handle):
    """All that a result says, by uid."""
    data = Dataset.open(handle)
    columns = {name: data.column(name).tolist() for name in ("length", "place")}
    return sorted(zip(data.uids, data.captions(range(len(data))), *columns.values()))


def test_the_result_does_not_depend_on_how_samples_lie_in_shards(tmp_path):
    store, one = pairs(tmp_path, range(120), 1, "one")
    _, many = pairs(tmp_path, list(reversed(range(120))), 7, "many")
    first = curated(tmp_path, store, one, STEPS, "b" * 64)
    second = curated(tmp_path, store, many, STEPS, "c" * 64)
    assert what(first) == what(second)
    assert len(what(first)) == 2  # one sample of 16 letters, twice
    reports = [json.loads(handle.read("report.json")) for handle in (first, second)]
    assert reports[0] == reports[1]


def test_every_step_is_counted_and_columns_are_there_for_what_is_left(tmp_path):
    store, data = pairs(tmp_path, range(120), 3)
    handle = curated(tmp_path, store, data, [Shout(), AboveMean(column="length")])
    report = json.loads(handle.read("report.json"))
    lengths = np.array([len(f"thing number {n}") for n in range(120)])
    left = int((lengths >= lengths.mean()).sum())
    assert [(s["in"], s["kept"]) for s in report["steps"]] == [(120, 120), (120, left)]
    assert report["steps"][0]["counts"] == {"letters": float(lengths.sum())}
    assert report["steps"][1]["dropped"] == {"AboveMean: below the mean": 120 - left}
    assert len(report["steps"][1]["examples"]["AboveMean: below the mean"]) == 10
    after = Dataset.open(handle)
    assert sorted(after.column("length")) == sorted(lengths[lengths >= lengths.mean()])
    assert all(c[-1].text == c[0].text.upper() and c[-1].slot == "generated" for c in after.captions(range(left)))
    assert "fitted-1-AboveMean.safetensors" in handle.manifest.files


def test_columns_of_an_earlier_curation_are_read_and_replaced_by_a_later_one(tmp_path):
    store, data = pairs(tmp_path, range(40), 2)
    first = curated(tmp_path, store, data, [Shout()])
    second = curated(tmp_path, store, first, [Shout(), AboveMean(column="length")], "c" * 64)
    texts = [caption.text for caption in Dataset.open(second).captions([0])[0]]
    assert texts[0].upper() == texts[1] == texts[2]


def test_repeated_samples_are_curated_once_and_go_on_repeating(tmp_path):
    store, data = pairs(tmp_path, range(20), 2)
    twice = curated(tmp_path, store, data, [Twice()])
    assert len(Dataset.open(twice)) == 40
    four = curated(tmp_path, store, twice, [Shout(), Twice()], "c" * 64)
    opened = Dataset.open(four)
    assert len(opened) == 80
    assert json.loads(four.read("report.json"))["steps"][0]["in"] == 20
    assert opened.take([3]).column("length") == opened.take([0]).column("length")


def test_a_stage_that_was_killed_goes_on_with_the_blocks_that_are_missing(tmp_path, monkeypatch):
    store, data = pairs(tmp_path, range(60), 6)
    sign, bad = tmp_path / "sign", Dataset.open(data).uids[35]
    sign.touch()
    steps = [Shout(), Fail(uid=bad, while_there=str(sign)), OneOfEach(column="length")]
    with pytest.raises(RuntimeError, match="killed"):
        curated(tmp_path, store, data, steps)
    parts = Parts(store.storage, "b" * 64)
    assert sorted(parts.done("state-0")) == [0, 1, 2]
    sign.unlink()
    opened = []
    monkeypatch.setattr(Shout, "judge", lambda self, block, judge=Shout.judge: opened.append(1) or judge(self, block))
    (tmp_path / "out" / ("b" * 64)).rmdir()
    resumed = curated(tmp_path, store, data, steps)
    assert len(opened) == 3
    assert what(resumed) == what(curated(tmp_path, store, data, steps, "c" * 64))


def test_held_out_samples_stay_as_they_are_where_one_split_is_curated(tmp_path):
    store = open_store(tmp_path / "store")
    source.prepare(str(write_samples(tmp_path / "pets", range(60), 3)), store)
    stage = DatasetStage.model_validate({"source": str(tmp_path / "pets"), "split": {"holdout": 0.4}})
    data, _ = run_stage(store, stage, tmp_path, "dataset", "a" * 64)
    before = Dataset.open(data)
    held = {uid for uid, split in zip(before.uids, before.column("split")) if split == "id"}
    config = CurateStage.model_construct(data="p", split="train", steps=[Shout(), AboveMean(column="length"), Twice()])
    handle, outcome = run_stage(store, config, tmp_path, "curate", "b" * 64, {"data": data})
    after, report = Dataset.open(handle), json.loads(handle.read("report.json"))
    left = [uid for uid, split in zip(after.uids, after.column("split")) if split == "id"]
    assert sorted(left) == sorted(held)
    assert (report["in"], report["apart"]) == (60 - len(held), len(held))
    assert report["kept"] == outcome.metrics["samples_train"] == len(after) - len(held)
    captions = dict(zip(after.uids, after.captions(range(len(after)))))
    assert all((len(captions[uid]) == 1) == (uid in held) for uid in after.uids)


def test_a_torn_part_is_made_again(tmp_path):
    store, data = pairs(tmp_path, range(20), 2)
    parts = Parts(store.storage, "b" * 64)
    parts.put("state-0", 0, b"whole")
    path = store.storage.local(f"work/{'b' * 64}/parts/state-0/00000000")
    path.write_bytes(path.read_bytes()[:-2])
    assert parts.find("state-0", 0) is None
    assert len(Dataset.open(curated(tmp_path, store, data, [Shout()]))) == 20


def test_an_operator_whose_column_is_missing_is_named_before_anything_is_done(tmp_path):
    store, data = pairs(tmp_path, range(4), 1)
    with pytest.raises(UserError, match=r"operator AboveMean \(steps\.0\) needs the column 'length'"):
        curated(tmp_path, store, data, [AboveMean(column="length"), Shout()])
    assert not Parts(store.storage, "b" * 64).done("seen-0")
