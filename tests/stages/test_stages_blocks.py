"""Work in blocks, by one process and by Ray Data's workers: each block once, through deaths, errors and stops; and an
embed stage by two workers.
"""

from __future__ import annotations

import secrets
import time

import pytest
from stages_blocks_toy import Toy
from stages_train_tiny import MODEL, make_store, run_stage

from orchestrator.errors import DataError, UserError
from orchestrator.io.storage import Storage
from orchestrator.plan.types import Resources
from orchestrator.stages.blocks import Pass, do
from orchestrator.stages.embed.config import EmbedStage
from orchestrator.stages.train.config import Pretrain
from orchestrator.store.parts import Parts

ONE, TWO = Resources(cpus=1), Resources(cpus=2, workers=2)
BLOCKS = range(12)


@pytest.fixture
def parts(tmp_path):
    return Parts(Storage.open(str(tmp_path / "store")), secrets.token_hex(32))


@pytest.fixture(params=[ONE, pytest.param(TWO, marks=[pytest.mark.ray, pytest.mark.timeout(240)])], ids=["one", "two"])
def resources(request):
    if request.param.workers > 1:
        request.getfixturevalue("ray_cluster")
    return request.param


def folder(tmp_path):
    (tmp_path / "log").mkdir()
    return tmp_path / "log"


def test_every_block_is_done_once_and_told(resources, parts, tmp_path):
    toy, told = Toy(folder(tmp_path)), []
    assert do(Pass("p", BLOCKS, toy), parts, resources, on_block=lambda *so_far: told.append(so_far)) is None
    assert toy.calls() == list(BLOCKS)
    assert [parts.get("p", block) for block in BLOCKS] == [b"%d" % block for block in BLOCKS]
    assert told == [(done, 12) for done in range(13)]


def test_blocks_that_are_there_are_not_done_again(resources, parts, tmp_path):
    for block in (0, 3, 11):
        parts.put("p", block, b"there")
    toy = Toy(folder(tmp_path))
    assert do(Pass("p", BLOCKS, toy), parts, resources) is None
    assert toy.calls() == [1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert do(Pass("p", BLOCKS, Toy(tmp_path, closed=True)), parts, resources) is None


def test_what_a_block_raises_comes_out_and_finished_blocks_stay(resources, parts, tmp_path):
    toy = Toy(folder(tmp_path), fails_at=5)
    with pytest.raises(DataError, match=r"block 5 is bad\n  repair it"):
        do(Pass("p", BLOCKS, toy), parts, resources)
    assert toy.calls().count(5) == 1
    assert 5 not in parts.done("p")
    assert parts.done("p")


def test_a_worker_that_cannot_start_says_why(resources, parts, tmp_path):
    with pytest.raises(UserError, match="there are no weights here"):
        do(Pass("p", BLOCKS, Toy(tmp_path, closed=True)), parts, resources)


def test_a_stop_keeps_what_is_finished_and_the_rest_is_done_later(resources, parts, tmp_path):
    toy = Toy(folder(tmp_path), takes_s=0.2)
    blocks, seen = range(40), []
    reason = do(
        Pass("p", blocks, toy),
        parts,
        resources,
        should_stop=lambda: "cancelled" if len(seen) > 4 else None,
        on_block=lambda done, total: seen.append(done),
    )
    assert reason == "cancelled"
    time.sleep(1)  # nobody goes on in the background
    kept = set(parts.done("p"))
    assert len(seen) - 1 <= len(kept) <= len(seen) + 7
    assert do(Pass("p", blocks, toy), parts, resources) is None
    assert set(parts.done("p")) == set(blocks)
    assert len(toy.calls()) <= 40 + 4


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_a_worker_that_is_killed_is_replaced_and_its_block_done_again(ray_cluster, parts, tmp_path):
    toy = Toy(folder(tmp_path), dies_at=3, takes_s=0.05)
    assert do(Pass("p", BLOCKS, toy), parts, TWO) is None
    assert set(parts.done("p")) == set(BLOCKS)
    assert toy.calls().count(3) == 2
    assert len(toy.calls()) <= 12 + 2  # and what was waiting at the dead one, at most
    assert len(toy.processes()) == 3


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_two_workers_embed_to_the_bytes_of_one(ray_cluster, tmp_path):
    store, data = make_store(tmp_path / "made")
    settings = {"data": "pairs", "model": MODEL, "batch": 8, "warmup_steps": 1, "steps": 1}
    teacher = run_stage(store, Pretrain.model_validate(settings), tmp_path, "pretrain", "a" * 64, {"data": data})
    inputs = {"data": data, "model": teacher.handle}
    config = EmbedStage.model_validate({"model": "teacher", "data": "pairs", "views": 2, "batch": 12, "block": 24})
    one = run_stage(store, config, tmp_path, "embed", "b" * 64, inputs)
    two = run_stage(store, config, tmp_path, "embed", "c" * 64, inputs, resources=TWO)
    assert two.handle.manifest.content_digest == one.handle.manifest.content_digest
    assert len(Parts(store.storage, "c" * 64).done("image-24")) > 3
