"""Exports: shards that webdataset, Ray Data and open_clip read, DataComp's uid file, one table of everything."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "data"))
from data_shards import open_store, publish, run_stage, write_samples

from orchestrator.data import source
from orchestrator.data.dataset import Dataset, write_choice
from orchestrator.errors import DataError
from orchestrator.stages.base import Outcome
from orchestrator.stages.dataset.config import DatasetStage
from orchestrator.stages.export.config import ExportStage

COUNTS = [0, 1, 3, 0, 1, 1, 2, 0, 1, 1, 1, 1]


def facts(number):
    return {"uid": f"{number:032x}", "concept": f"thing {number}", "captions": {"keywords": f"k{number}"}}


@pytest.fixture
def weighted(tmp_path):
    """A store, a Dataset of 12 samples of which some repeat and some are left out, and all of them."""
    store = open_store(tmp_path / "store")
    source.prepare(str(write_samples(tmp_path / "pets", range(12), 2, facts)), store)
    stage = DatasetStage.model_validate({"source": str(tmp_path / "pets"), "split": {"ood_style": None}})
    data, _ = run_stage(store, stage, tmp_path, "dataset", "a" * 64)
    out = tmp_path / "weighted"
    out.mkdir()
    write_choice(out, data, np.array(COUNTS, np.uint16), sum(COUNTS))
    return store, publish(store, out, "curate", "e" * 64, Outcome()), data


def exported(tmp_path, store, data, **settings):
    stage = ExportStage.model_validate({"data": "clean", "shard_samples": 5, **settings})
    return run_stage(store, stage, tmp_path, "export", "c" * 64, {"data": data})[0]


def test_exported_shards_are_read_by_webdataset_with_repeats_under_names_of_their_own(tmp_path, weighted):
    import webdataset

    store, data, _ = weighted
    made = exported(tmp_path, store, data, formats=["webdataset"])
    folder = made.local("webdataset/sizes.json").parent
    sizes = json.loads((folder / "sizes.json").read_text())
    assert sizes == {"00000000.tar": 5, "00000001.tar": 5, "00000002.tar": 2}
    read = [s for name in sizes for s in webdataset.WebDataset(str(folder / name), shardshuffle=False)]
    samples = Dataset.open(data).read(range(12))
    assert [s["png"] for s in read] == [s.image for s in samples]
    assert [s["txt"].decode() for s in read] == [s.captions[0].text for s in samples]
    keys = [s["__key__"] for s in read]
    assert len(set(keys)) == 12
    assert [key.partition("-")[0] for key in keys] == [s.uid for s in samples]
    sidecar = [row for name in sizes for row in pq.read_table(folder / name.replace("tar", "parquet")).to_pylist()]
    assert [row["key"] for row in sidecar] == keys
    assert all(json.loads(s["json"])["concept"] == row["concept"] for s, row in zip(read, sidecar))


@pytest.mark.parametrize("uids", ["own", "source"])
def test_the_uid_file_is_sorted_as_its_hex_digits_are_and_repeats(tmp_path, weighted, uids):
    store, data, _ = weighted
    made = exported(tmp_path, store, data, formats=["datacomp"], uids=uids)
    found = np.load(io.BytesIO(made.read("selection.npy")))
    assert found.dtype == np.dtype("u8,u8")
    spelt = [f"{high:016x}{low:016x}" for high, low in found.tolist()]
    opened = Dataset.open(data)
    assert spelt == sorted(opened.uids if uids == "own" else opened.column("source_uid").tolist())


def test_a_sample_without_an_id_of_its_own_is_named(tmp_path):
    store = open_store(tmp_path / "store")
    source.prepare(str(write_samples(tmp_path / "pets", range(3), 1)), store)
    data, _ = run_stage(store, DatasetStage(source=str(tmp_path / "pets")), tmp_path, "dataset", "a" * 64)
    with pytest.raises(DataError, match=r"0000-0000\) has no 128-bit uid"):
        exported(tmp_path, store, data, formats=["datacomp"], uids="source")


def test_one_table_has_every_sample_once_with_its_captions_and_columns(tmp_path, weighted):
    store, data, _ = weighted
    made = exported(tmp_path, store, data, formats=["parquet"])
    table = pq.read_table(io.BytesIO(made.read("samples.parquet")))
    assert table["repeats"].to_pylist() == [count for count in COUNTS if count]
    assert set(table["uid"].to_pylist()) == set(Dataset.open(data).uids)
    assert table["captions"][0].as_py()[1]["slot"] == "keywords"
