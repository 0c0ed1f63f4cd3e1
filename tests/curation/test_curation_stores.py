"""Curation, materialising and exporting on a disk, in memory and on S3: the same bytes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "data"))
from data_shards import open_store, run_stage, write_samples

from orchestrator.data import source
from orchestrator.data.dataset import Dataset
from orchestrator.stages.curate.config import CurateStage
from orchestrator.stages.dataset.config import DatasetStage
from orchestrator.stages.export.config import ExportStage
from orchestrator.stages.materialize.config import MaterializeStage
from orchestrator.store.artifacts import Store

STEPS = ["dedup", {"text_length": {"max_words": 3}}, {"near_duplicates": {"bits": 0}}, {"sample": {"share": 0.7}}]
CHAIN = (
    ("curate", CurateStage.model_validate({"data": "pairs", "steps": STEPS})),
    ("materialize", MaterializeStage.model_validate({"data": "chosen", "shard_samples": 7, "shuffle": True})),
    ("export", ExportStage.model_validate({"data": "whole", "formats": ["webdataset", "datacomp", "parquet"]})),
)


def facts(number):
    return {"concept": f"thing {number % 5}", "style": "flat", "captions": {"keywords": f"k{number}"}}


def chain(root: str, folder: Path, work: Path) -> dict[str, str]:
    """Content digests of all stages, made in a store."""
    store = open_store(root)
    source.prepare(str(folder), store)
    stage = DatasetStage.model_validate({"source": str(folder), "split": {"ood_style": None}, "import": "copy"})
    source.copy_in(str(folder), store)
    data, _ = run_stage(store, stage, work, "dataset", "0" * 64)
    digests = {"dataset": data.manifest.content_digest}
    for number, (kind, config) in enumerate(CHAIN, 1):
        data, _ = run_stage(store, config, work, kind, str(number) * 64, {"data": data})
        digests[kind] = data.manifest.content_digest
    return digests


@pytest.fixture
def pets(tmp_path):
    return write_samples(tmp_path / "pets", [*range(30), 3, 4, 5], 3, facts)


@pytest.mark.parametrize("other", ["memory", "s3"])
def test_content_digests_are_those_of_a_local_disk(tmp_path, monkeypatch, pets, other, request):
    monkeypatch.setenv("ORCH_CACHE", str(tmp_path / "cache"))
    here = chain(str(tmp_path / "store"), pets, tmp_path / "here")
    root = request.getfixturevalue("s3_root") if other == "s3" else f"memory://{tmp_path}"
    assert chain(root, pets, tmp_path / "there") == here


def test_what_was_chosen_on_s3_reads_from_there(tmp_path, monkeypatch, pets, s3_root):
    monkeypatch.setenv("ORCH_CACHE", str(tmp_path / "cache"))
    chain(s3_root, pets, tmp_path / "there")
    store = Store.open(s3_root)
    whole = Dataset.open(store.handle("materialize", "2" * 64))
    kept = json.loads(store.handle("curate", "1" * 64).read("report.json"))["kept"]
    assert len(whole.read(range(len(whole)))) == kept
