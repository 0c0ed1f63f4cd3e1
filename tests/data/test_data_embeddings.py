"""The Embeddings format: looked up by sample and view, deterministic, and clear about samples it lacks."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.data import embeddings
from orchestrator.data.captions import CaptionPolicy
from orchestrator.data.dataset import IDENTITY
from orchestrator.data.embeddings import DTYPES, About, Array, StoredViews
from orchestrator.data.preprocess import Preprocess, Tokenizer
from orchestrator.data.transforms import Augment
from orchestrator.errors import StageError

SAMPLES, VIEWS, DIMS = 7, 3, 4
TEXT_ROWS = np.arange(SAMPLES * VIEWS) % 5


def about(**changes) -> About:
    return About(
        **{
            "model": "m" * 64,
            "data": "d" * 64,
            "split": "train",
            "views": VIEWS,
            "seed": 3,
            "augment": Augment(flip=0.5),
            "captions": CaptionPolicy(slots={"original": 1.0, "short": 2.0}, lang="en"),
            "preprocess": Preprocess(32, background=(1, 2, 3)),
            "tokenizer": Tokenizer(context_length=24),
            "scale": 50.0,
        }
        | changes
    )


def uids(count: int = SAMPLES) -> np.ndarray:
    """Sorted, some with bytes that are 0 at the end or above 127."""
    drawn = np.random.default_rng(0).integers(0, 256, (count, 16), np.uint8)
    drawn[:2, -3:] = 0
    return drawn[np.lexsort(drawn.T[::-1])]


def names(values: np.ndarray) -> list[str]:
    return [row.tobytes().hex() for row in values]


def write(out: Path, dtype: str = "fp32", views: int = VIEWS) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of random features; these."""
    out.mkdir(exist_ok=True)
    rows = TEXT_ROWS[: SAMPLES * max(1, views)]
    kind = DTYPES[dtype]
    arrays = [
        Array(out, "image", (len(rows), 1, DIMS), kind),
        Array(out, "text", (int(rows.max()) + 1, 1, DIMS), kind, rows),
    ]
    made = [np.random.default_rng(place).normal(size=(len(array), DIMS)) for place, array in enumerate(arrays)]
    for array, features in zip(arrays, made):
        array.values[:, 0] = features
    embeddings.finish(out, about(views=views), uids(), arrays)
    return made[0], made[1]


def test_each_samples_view_has_its_features_in_any_order(tmp_path):
    image, text = write(tmp_path)
    stored = StoredViews.open(tmp_path)
    wanted, views = [5, 0, 0, 6, 1], [2, 1, 0, 2, 1]
    found = stored.features([names(uids())[sample] for sample in wanted], views)
    at = np.array(wanted) * VIEWS + views
    assert {name: value.dtype for name, value in found.items()} == {"image": torch.float32, "text": torch.float32}
    np.testing.assert_array_equal(found["image"], image[at].astype(np.float32))
    np.testing.assert_array_equal(found["text"], text[TEXT_ROWS[at]].astype(np.float32))


def test_what_a_student_needs_to_see_the_same_views_is_read_back(tmp_path):
    write(tmp_path)
    stored = StoredViews.open(tmp_path)
    assert stored.about == about()
    assert (stored.num_views, stored.seed, stored.augment, stored.captions) == (
        VIEWS,
        3,
        about().augment,
        about().captions,
    )
    assert len(stored) == SAMPLES


def test_the_view_of_evaluation_is_one_view(tmp_path):
    image, _ = write(tmp_path, views=0)
    found = StoredViews.open(tmp_path).features(names(uids()), [0] * SAMPLES)
    np.testing.assert_array_equal(found["image"], image.astype(np.float32))


def test_half_precision_is_stored_in_half_the_bytes_and_read_as_float32(tmp_path):
    image, _ = write(tmp_path / "half", "fp16")
    write(tmp_path / "full")
    found = StoredViews.open(tmp_path / "half").features(names(uids()), [1] * SAMPLES)["image"]
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found, image[1::VIEWS].astype(np.float16))
    sizes = [(tmp_path / kind / "image.npy").stat().st_size - 128 for kind in ("half", "full")]
    assert sizes == [2 * image.size, 4 * image.size]


def test_equal_features_are_equal_bytes(tmp_path):
    for folder in ("one", "other"):
        write(tmp_path / folder)
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "other" / file.name).read_bytes(), file.name
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        "embeddings.json",
        "image.npy",
        "text.npy",
        "text_rows.npy",
        "uid.npy",
    ]


def test_samples_that_are_not_there_are_named(tmp_path):
    write(tmp_path)
    stored, stranger = StoredViews.open(tmp_path), "f" * 32
    with pytest.raises(StageError, match=rf"no features of 1 of 2 samples \({stranger}\).*another data set"):
        stored.features([names(uids())[0], stranger], [0, 0])
    more = np.concatenate([uids(), np.full((5, 16), 255, np.uint8)])
    with pytest.raises(StageError, match=r"5 of 12 samples \((f{32}, ){3}\.\.\.\)"):
        stored.require(more.view(IDENTITY)[:, 0])
    stored.require(uids().view(IDENTITY)[:, 0])


def test_embeddings_of_other_pixels_are_refused(tmp_path):
    write(tmp_path)
    read = json.loads((tmp_path / "embeddings.json").read_text())
    (tmp_path / "embeddings.json").write_text(json.dumps(read | {"transforms": read["transforms"] + 1}))
    with pytest.raises(StageError, match="Compute them again"):
        StoredViews.open(tmp_path)


def test_many_threads_may_read_at_once(tmp_path):
    image, _ = write(tmp_path)
    stored = StoredViews.open(tmp_path)

    def read(view: int) -> bool:
        found = stored.features(names(uids()), [view % VIEWS] * SAMPLES)["image"]
        return np.array_equal(found, image[view % VIEWS :: VIEWS].astype(np.float32))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(100)))


def test_arrays_of_several_facets_keep_them(tmp_path):
    """A description of several facets, as FLAME's captions have, needs no other format."""
    write(tmp_path)
    read = json.loads((tmp_path / "embeddings.json").read_text())
    facets = np.arange(SAMPLES * VIEWS * 5 * 2, dtype="<f4").reshape(SAMPLES * VIEWS, 5, 2)
    np.save(tmp_path / "facets.npy", facets)
    text = {"file": "facets.npy", "rows": None, "facets": 5, "dims": 2, "dtype": "float32", "normalised": False}
    (tmp_path / "embeddings.json").write_text(json.dumps(read | {"arrays": {"text": text}}))
    found = StoredViews.open(tmp_path).features(names(uids())[:2], [0, 1])
    assert list(found) == ["text"]
    np.testing.assert_array_equal(found["text"], facets[[0, VIEWS + 1]])


def test_rows_of_any_samples_are_found_without_reading_the_others(tmp_path):
    image, _ = write(tmp_path)
    stored, wanted = StoredViews.open(tmp_path), uids()[[6, 0, 3]]
    assert stored.names == ("image", "text")
    assert isinstance(stored.array("image"), np.memmap)
    at = np.array([6, 0, 3]) * VIEWS + 2
    for ids in (wanted, wanted.view(IDENTITY)[:, 0], wanted.view("S16")[:, 0]):
        np.testing.assert_array_equal(stored.rows(ids, "image", 2), at)
    np.testing.assert_array_equal(stored.array("image")[stored.rows(wanted, "image", 2)][:, 0], image[at].astype("f4"))
    np.testing.assert_array_equal(stored.rows(wanted, "text", 2), TEXT_ROWS[at])
    with pytest.raises(StageError, match="no 'codes'; they have: image, text"):
        stored.array("codes")
    with pytest.raises(StageError, match="no features of 1 of 1 samples"):
        stored.rows(np.full((1, 16), 255, np.uint8), "image")


def test_codes_are_whole_numbers(tmp_path):
    codes = np.arange(SAMPLES * VIEWS * 2, dtype="<u2").reshape(-1, 1, 2)
    array = Array(tmp_path, "codes", codes.shape, DTYPES["codes"])
    array.values[:] = codes
    embeddings.finish(tmp_path, about(), uids(), [array])
    stored = StoredViews.open(tmp_path)
    found = stored.features(names(uids())[:2], [1, 2])["codes"]
    assert found.dtype == torch.int64
    assert found.tolist() == codes[[1, VIEWS + 2], 0].tolist()
    assert not json.loads((tmp_path / "embeddings.json").read_text())["arrays"]["codes"]["normalised"]
