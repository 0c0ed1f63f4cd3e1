"""Bad samples and a full disk, as a person meets them: what `orch submit` says, and how it goes on."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from small_disk import small_disk
from system_orch import overrides, write_shards

from orchestrator.store.artifacts import Store
from orchestrator.store.events import EventReader

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240, func_only=True)]


@pytest.fixture
def shards(tmp_path) -> Path:
    (tmp_path / "photos").mkdir()
    write_shards(tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def recipe(shards, tmp_path) -> Path:
    """A short training that keeps a checkpoint every other step."""
    path = tmp_path / "short.yaml"
    path.write_text(f"""
name: short
stages:
  pairs: {{kind: dataset, source: {shards}}}
  clip: {{kind: pretrain, data: pairs, model: tiny, steps: 12, batch: 8, warmup_steps: 2, report_every: 2,
          checkpoint_every: 2}}
""")
    return path


def add_bad_samples(shards: Path) -> None:
    """A whole caption that is no text, an image that ends after its header, a shard that ends in the middle."""
    with tarfile.open(shards / "00000.tar") as tar:
        image = tar.extractfile("000000000.jpg").read()
    with tarfile.open(shards / "00002.tar", "w") as tar:
        for name, content in (
            ("a.jpg", image[:-1]),
            ("a.txt", b"\xff\xfe\x00"),
            ("b.jpg", image[:700]),
            ("b.txt", b"an image that ends after its header"),
            ("c.jpg", image[:-2]),
            ("c.json", b'{"caption": 17}'),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    whole = (shards / "00001.tar").read_bytes()
    (shards / "00001.tar").write_bytes(whole[: len(whole) // 2])


def test_bad_samples_fail_a_stage_once_and_are_left_out_where_the_recipe_allows_them(orch, shards, recipe, tmp_path):
    add_bad_samples(shards)
    store = str(tmp_path / "store")

    said = orch("submit", recipe, "--store", store, exit_code=1, timeout_s=120)
    for part in ("caption is not UTF-8: 1 (00002.tar/a)", "caption is not text: 1 (00002.tar/c)", "max_bad: 0.01"):
        assert part in said.out + said.err
    for part in ("shard is truncated: 1 (00001.tar)", "raise `max_bad`"):
        assert part in said.out + said.err
    assert "Traceback" not in said.out + said.err

    said = orch("submit", recipe, "--store", store, *overrides(pairs__max_bad=0.5), exit_code=1, timeout_s=120)
    assert "image cannot be decoded: 1" in said.out + said.err
    assert "(00002.tar, key b)" in said.out + said.err
    assert "Traceback" not in said.out + said.err

    orch("submit", recipe, "--store", store, *overrides(pairs__max_bad=0.5, clip__max_bad=1), timeout_s=120)
    made = {manifest.stage: manifest for manifest in Store.open(store).manifests()}
    assert made["clip"].summary["bad_samples"]["counts"] == {"image cannot be decoded": 1}
    assert made["pairs"].summary["dropped"]["counts"]["shard is truncated"] == 1
    told = [e["text"] for e in EventReader(Store.open(store).storage, made["pairs"].fingerprint).poll() if "text" in e]
    assert any("left out" in text and "shard is truncated: 1" in text for text in told)


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", "48m") as mounted:
        yield mounted


def test_a_full_disk_ends_a_submission_with_the_remedy_and_the_next_one_goes_on(orch, recipe, disk, tmp_path):
    store = str(disk.path / "store")
    orch("submit", recipe, "--store", store, "--until", "pairs", timeout_s=120)
    orch.delivered()

    disk.fill()
    refused(orch("submit", recipe, "--store", store, exit_code=1, timeout_s=120))

    disk.make_space()  # for two checkpoints, but not for a third
    refused(orch("submit", recipe, "--store", store, exit_code=1, timeout_s=120))

    disk.enlarge("256m")
    said = orch("submit", recipe, "--store", store, timeout_s=120)
    assert "1 stages made, 1 were there already" in said.out + said.err
    (clip,) = Store.open(store).manifests("pretrain")
    assert clip.summary["resumed_at_samples"] == 32
    assert clip.summary["samples"] == 96


def refused(said) -> None:
    text = said.out + said.err
    assert "full" in text, text
    assert "submit" in text
    assert "Traceback" not in text, text
