"""How a training stage reads: the order it chose, what it counted, and what a person is told."""

from __future__ import annotations

import itertools

import pytest
from stages_train_tiny import make_store, run_stage
from test_stages_train import pretrain, stop_after

from orchestrator.data import blocks


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"))


NUMBERS = itertools.count()


def train(stored, folder, fingerprint="", generation=1, should_stop=lambda: None, **fields):
    store, data = stored
    return run_stage(
        store,
        pretrain(**fields),
        folder,
        "pretrain",
        fingerprint or f"{next(NUMBERS):08x}" * 8,
        {"data": data},
        generation=generation,
        should_stop=should_stop,
    )


def losses(done) -> dict[int, float]:
    return {event["samples"]: event["metrics"]["loss"] for event in done.events.of("report")}


def test_small_data_are_read_in_exact_order_and_the_manifest_says_why(stored, tmp_path):
    done = train(stored, tmp_path)
    read = done.outcome.summary["read"]
    assert (read["mode"], "GB of images" in read["why"]) == ("exact", True)
    assert read["bytes"] > 0
    assert read["requests"] > 0
    assert done.events.of("report")[-1]["metrics"]["read_bytes"] <= read["bytes"]
    assert losses(done) == losses(train(stored, tmp_path, read="exact"))


def test_a_training_that_reads_blocks_resumes_bit_for_bit(stored, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 500)
    whole = train(stored, tmp_path, read="block")
    assert whole.outcome.summary["read"]["mode"] == "block"
    stopped = train(stored, tmp_path, "c" * 64, read="block", should_stop=stop_after(3))
    assert stopped.outcome.stopped
    rest = train(stored, tmp_path, "c" * 64, read="block", generation=2)
    assert rest.handle.manifest.content_digest == whole.handle.manifest.content_digest
    assert {**losses(stopped), **losses(rest)}.items() >= losses(whole).items()


def test_loader_processes_change_nothing(stored, tmp_path):
    by = [train(stored, tmp_path, read="block", loader_processes=n) for n in (0, 2)]
    assert by[0].handle.manifest.content_digest == by[1].handle.manifest.content_digest
    assert by[1].outcome.summary["read"]["bytes"] > 0


def test_what_became_of_joined_captions_is_told(stored, tmp_path):
    """These data have originals alone: no last part is there to survive."""
    done = train(stored, tmp_path, captions={"join": ["original", "generated"]})
    assert done.outcome.summary["joined_captions"] == {"shown": 48, "with_last": 0, "whole": 0}
    assert done.outcome.metrics["captions_whole"] == 0.0
    whole = train(stored, tmp_path, captions={"join": ["generated", "original"]})
    assert whole.outcome.metrics["captions_whole"] == 1.0
    assert losses(whole) == losses(done)


@pytest.mark.parametrize(
    ("captions", "warned"),
    [({}, False), ({"slots": {"generated": 1.0}}, True), ({"join": ["generated"]}, True)],
    ids=str,
)
def test_generated_captions_alone_are_warned_about(stored, tmp_path, captions, warned):
    done = train(stored, tmp_path, captions=captions, steps=1)
    texts = [event["text"] for event in done.events.of("message")]
    assert any("generated captions alone" in text and "join" in text for text in texts) is warned
