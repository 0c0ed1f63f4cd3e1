"""Curation: what operators keep, that they do so in any order of samples, and that every drop has a counted reason."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent.parent / "data"))
from data_shards import image, open_store, run_stage, sample, write_samples, write_shard

from orchestrator.curation.block import Block
from orchestrator.curation.dedup import Dedup
from orchestrator.curation.min_size import MinSize
from orchestrator.data import source
from orchestrator.data.dataset import IDENTITY, Dataset
from orchestrator.errors import DataError
from orchestrator.stages.curate.config import CurateStage
from orchestrator.stages.dataset.config import DatasetStage


def identities(values: list[int]) -> np.ndarray:
    return np.array([(0, value) for value in values], IDENTITY)


def dedup_bucket(samples):
    """What `Dedup` is shown of samples (uid, digest of what must be equal): a bucket in uid order."""
    uid, digest = zip(*sorted(samples))
    raw = np.zeros((len(uid), 16), np.uint8)
    raw[:, 0] = digest
    return {"uid": identities(list(uid)), "digest": raw, "group": np.array(digest, np.uint64)}


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.randoms())
def test_dedup_keeps_the_lowest_uid_of_equal_samples_in_any_order(digests, random):
    samples = list(enumerate(digests))
    bucket = dedup_bucket(random.sample(samples, len(samples)))
    reasons = Dedup().compare(bucket, None).reasons
    kept = set(bucket["uid"]["low"][reasons == ""].tolist())
    assert kept == {min(uid for uid, digest in samples if digest == one) for one in set(digests)}
    assert set(reasons[reasons != ""]) <= {"same pair as another sample"}


@pytest.mark.parametrize(("key", "kept"), [("pair", 3), ("image", 2)])
def test_dedup_compares_pairs_or_images(tmp_path, key, kept):
    folder = write_samples(tmp_path / "pets", [1, 1, 2], 1)
    write_shard(folder / "00001.tar", sample("renamed", 1, "another caption"))
    *_, handle, _ = curated(tmp_path, [{"dedup": {"key": key}}], folder=folder)
    assert len(Dataset.open(handle)) == kept


def test_min_size_looks_at_the_shorter_side():
    sizes = {"width": np.array([32, 31, 64], np.uint32), "height": np.array([32, 64, 31], np.uint32)}
    reasons = MinSize(pixels=32).judge(Block(range(3), sizes)).reasons
    assert (reasons == "").tolist() == [True, False, False]


def curated(tmp_path, steps, kind="curate", folder=None):
    store = open_store(tmp_path / "store")
    if folder is None:
        folder = write_samples(tmp_path / "pets", [*range(10), 3, 4], 2)
        write_shard(folder / "00002.tar", [("tiny.png", image(50, size=4)), ("tiny.txt", b"tiny")])
        write_shard(folder / "00003.tar", sample("renamed", 3, "another caption"))
    source.prepare(str(folder), store)
    data, _ = run_stage(store, DatasetStage(source=str(folder)), tmp_path, "dataset", "f1")
    stage = CurateStage.model_validate({"data": "pairs", "steps": steps})
    handle, outcome = run_stage(store, stage, tmp_path, kind, "f2", {"data": data})
    return store, Dataset.open(data), handle, outcome


def test_the_funnel_counts_every_dropped_sample_with_its_reason(tmp_path):
    _, before, handle, outcome = curated(tmp_path, ["dedup", {"min_size": {"pixels": 8}}])
    after = Dataset.open(handle)
    report = json.loads(handle.read("report.json"))
    assert (report["in"], report["kept"]) == (14, 11) == (len(before), len(after))
    first, second = report["steps"]
    assert first["dropped"] == {"dedup: same pair as another sample": 2}
    assert second["dropped"] == {"min_size: shorter side under 8 px": 1}
    assert second["options"] == {"pixels": 8}
    examples = {uid for step in report["steps"] for found in step["examples"].values() for uid in found}
    assert examples == set(before.uids) - set(after.uids)
    kept = {"kept/0-dedup": 12.0, "kept/1-min_size": 11.0}
    assert outcome.metrics == {"samples": 11.0, "dropped": 3.0, "samples_train": 11.0, **kept}


def test_a_curated_dataset_reads_through_to_its_shards_and_columns_and_holds_no_copy(tmp_path):
    store, before, handle, _ = curated(tmp_path, ["dedup"])
    after = Dataset.open(handle)
    assert set(handle.manifest.files) == {"dataset.json", "selection.npy", "report.json"}
    assert after.columns == before.columns
    place = {uid: row for row, uid in enumerate(before.uids)}
    assert after.column("split").tolist() == [before.column("split")[place[uid]] for uid in after.uids]
    assert after.read([5]) == before.read([place[after.uids[5]]])
    again = CurateStage.model_validate({"data": "clean", "steps": [{"dedup": {"key": "image"}}]})
    third, _ = run_stage(store, again, tmp_path, "curate", "f3", {"data": handle})
    assert len(Dataset.open(third)) == 11
    assert len(Dataset.open(third).read(range(11))) == 11


def test_curation_that_leaves_nothing_is_an_error_that_says_why(tmp_path):
    with pytest.raises(DataError, match=r"min_size.*left no sample[\s\S]*under 100 px"):
        curated(tmp_path, [{"min_size": {"pixels": 100}}])
