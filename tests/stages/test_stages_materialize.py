"""Materialising: the same samples, ids, captions and columns in shards of their own, whatever the workers."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "data"))
from data_shards import open_store, run_stage, write_samples

from orchestrator.data import source
from orchestrator.data.dataset import Dataset, write_choice
from orchestrator.stages.curate.config import CurateStage
from orchestrator.stages.dataset.config import DatasetStage
from orchestrator.stages.materialize.config import MaterializeStage


def facts(number):
    captions = {"keywords": f"k{number}", "de": [f"Ding {number}", f"Sache {number}"], "uk": {"keywords": "річ"}}
    return {"concept": f"thing {number}", "style": "flat", "captions": captions, "lang": "en"}


@pytest.fixture
def pairs(tmp_path):
    """A store, and a Dataset of 14 samples of which 2 are duplicates."""
    store = open_store(tmp_path / "store")
    folder = write_samples(tmp_path / "pets", [*range(12), 3, 4], 3, facts)
    source.prepare(str(folder), store)
    stage = DatasetStage.model_validate({"source": str(folder), "split": {"ood_style": None}})
    data, _ = run_stage(store, stage, tmp_path, "dataset", "a" * 64)
    clean = CurateStage.model_validate({"data": "pairs", "steps": ["dedup"]})
    return store, run_stage(store, clean, tmp_path, "curate", "b" * 64, {"data": data})[0]


def materialized(tmp_path, store, data, fingerprint="c" * 64, **settings):
    stage = MaterializeStage.model_validate({"data": "clean", **settings})
    return run_stage(store, stage, tmp_path, "materialize", fingerprint, {"data": data})[0]


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_materialized_selection_is_the_same_samples_in_shards_of_their_own(tmp_path, pairs, shuffle):
    store, data = pairs
    before = Dataset.open(data)
    after = Dataset.open(materialized(tmp_path, store, data, shard_samples=5, shuffle=shuffle))
    assert len(after) == 12
    place = {uid: row for row, uid in enumerate(before.uids)}
    there = [place[uid] for uid in after.uids]
    assert sorted(there) == list(range(12))
    assert (there == list(range(12))) == (not shuffle)
    assert after.read(range(12)) == before.read(there)
    for column in ("split", "concept", "key", "width", "caption"):
        assert after.column(column).tolist() == before.column(column)[there].tolist()


def test_materialized_shards_stand_for_themselves_when_indexed_again(tmp_path, pairs):
    store, data = pairs
    made = materialized(tmp_path, store, data, shard_samples=5)
    folder = store.storage.local(f"{made.manifest.prefix}/shards")
    source.prepare(str(folder), store)
    stage = DatasetStage.model_validate({"source": str(folder), "split": {"ood_style": None}})
    again = Dataset.open(run_stage(store, stage, tmp_path, "dataset", "d" * 64)[0])
    assert again.read(range(12)) == Dataset.open(made).read(range(12))
    assert {caption.lang for caption in again.captions([0])[0]} == {"en", "de", "uk"}
    assert again.column("concept").tolist() == Dataset.open(made).column("concept").tolist()


def test_repeated_samples_are_stored_once_and_still_repeat(tmp_path, pairs):
    store, data = pairs
    counts = np.zeros(14, np.uint16)
    counts[[1, 5, 9]] = [1, 3, 2]
    out = tmp_path / "weighted"
    out.mkdir()
    write_choice(out, data, counts, 6)
    from data_shards import publish

    from orchestrator.stages.base import Outcome

    weighted = publish(store, out, "curate", "e" * 64, Outcome())
    made = materialized(tmp_path, store, weighted)
    after = Dataset.open(made)
    assert list(after.uids) == list(Dataset.open(weighted).uids)
    assert len(set(after.uids)) == 3
    with tarfile.open(fileobj=io.BytesIO(made.read("shards/00000.tar"))) as tar:
        assert len(tar.getnames()) == 9
    assert len(json.loads(made.read("dataset.json"))["shards"]) == 1
