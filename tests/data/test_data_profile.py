"""What `orch show` says of a data set, and how two versions of one differ."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from data_shards import make_dataset, open_store, publish, write_samples

from orchestrator.data.dataset import Dataset, write_choice
from orchestrator.data.profile import difference, profile
from orchestrator.report import contact_sheet
from orchestrator.stages.base import Outcome


def facts(number):
    return {"concept": f"thing {number % 3}", "lang": "uk" if number % 4 else "en", "captions": {"keywords": "a, b"}}


def test_the_figures_are_those_of_the_selected_samples(tmp_path):
    data = make_dataset(
        tmp_path, str(write_samples(tmp_path / "pets", range(20), 3, facts)), split={"ood_style": None}
    )
    found = profile(data)
    assert (found.samples, found.rows, found.shards, found.looked_at) == (20, 20, 3, 20)
    assert found.languages == {"en": 5, "uk": 15}
    assert found.slots == {"original": 20, "keywords": 20}
    assert found.to_json()["words"]["<= 3"] == 20
    assert found.to_json()["sides"]["<= 32"] == 20
    assert found.values["concept"][1] == 3
    assert sum(len(image) for image in data.images(range(20))) == found.image_bytes


def test_a_large_set_is_looked_at_in_part_and_says_so(tmp_path):
    data = make_dataset(tmp_path, str(write_samples(tmp_path / "pets", range(20), 5)))
    found = profile(data, most=8)
    assert (found.samples, found.looked_at) == (20, 8)


def test_two_versions_are_compared_by_their_samples(tmp_path):
    store = open_store(tmp_path / "store")
    make_dataset(tmp_path, str(write_samples(tmp_path / "pets", range(20), 2)), store)
    handle = store.handle("dataset", "f1")
    versions = []
    for name, kept in (("b", range(15)), ("c", range(5, 20))):
        out = tmp_path / name
        out.mkdir()
        write_choice(out, handle, np.packbits([row in kept for row in range(20)]), len(kept))
        versions.append(Dataset.open(publish(store, out, "curate", name * 64, Outcome())))
    found = difference(*versions)
    assert (found.both, found.only_a, found.only_b) == (10, 5, 5)
    assert found.splits == {"train": (15, 15)}
    assert found.recaptioned == (0, 10)
    assert len(found.examples_a) == len(found.examples_b) == 5


def test_a_contact_sheet_shows_samples_and_survives_one_that_cannot_be_decoded(tmp_path):
    data = make_dataset(tmp_path, str(write_samples(tmp_path / "pets", range(5), 1)))
    data.images = lambda rows: [b"no image"] * len(rows)  # whatever the decoder says of it
    contact_sheet.write(data, tmp_path / "sheet.png", columns=3, rows=2)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 400
