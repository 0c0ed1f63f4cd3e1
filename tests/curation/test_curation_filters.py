"""What each filter keeps, drops and says, on samples made for it; and the official functions' results."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pydantic import ValidationError

sys.path.insert(0, str(Path(__file__).parent.parent / "data"))
from data_shards import image, open_store, run_stage, write_shard

from orchestrator.curation.kmeans import nearest
from orchestrator.curation.near_duplicates import near_earlier, pieces
from orchestrator.curation.perceptual_hash import FLAT, distances, perceptual_hash
from orchestrator.curation.rank import at_rank
from orchestrator.curation.semdedup import closest_earlier
from orchestrator.curation.text_length import TextLength
from orchestrator.data import source
from orchestrator.data.dataset import Dataset
from orchestrator.errors import DataError
from orchestrator.stages.curate.config import CurateStage
from orchestrator.stages.dataset.config import DatasetStage

CASES = Path(__file__).parent.parent / "reference" / "tldr"


def case(name: str) -> dict:
    """A reference case's inputs and expected values."""
    found = next(c for c in json.loads((CASES / "cases.json").read_text())["cases"] if c["name"] == name)
    arrays = np.load(CASES / "cases.npz")

    def value(entry):
        return arrays[entry["npz"]] if "npz" in entry else entry["value"]

    return {part: {key: value(entry) for key, entry in found[part].items()} for part in ("inputs", "expected")}


def curated(tmp_path, samples, steps, inputs=None):
    """Captions (and images, and json) curated: the captions that stay, the report, the artifact."""
    store = open_store(tmp_path / "store")
    members = []
    for number, (caption, data, facts) in enumerate(samples):
        members += [(f"{number:04d}.png", data or image(number)), (f"{number:04d}.txt", caption.encode())]
        members += [(f"{number:04d}.json", json.dumps(facts).encode())]
    half = len(samples) // 2 * 3
    write_shard(tmp_path / "pets" / "00000.tar", members[:half])
    write_shard(tmp_path / "pets" / "00001.tar", members[half:])
    source.prepare(str(tmp_path / "pets"), store)
    stage = DatasetStage.model_validate({"source": str(tmp_path / "pets"), "split": {"ood_style": None}})
    data, _ = run_stage(store, stage, tmp_path, "dataset", "a" * 64)
    config = CurateStage.model_validate({"data": "pairs", "steps": steps})
    places = {}
    for file in config.external_sources():
        source.prepare(file, store)
        places[file] = source.identify(file, store).place
    given = {"data": data, **(inputs(store, data) if inputs else {})}
    handle, _ = run_stage(store, config, tmp_path, "curate", "b" * 64, given, places)
    opened = Dataset.open(handle)
    report = json.loads(handle.read("report.json"))
    return sorted(opened.column("caption").tolist()), report["steps"], opened


def of(*captions, **facts):
    return [(caption, None, facts) for caption in captions]


@pytest.mark.parametrize(
    ("step", "kept"),
    [
        ({"min_words": 3}, ["one two three"]),
        ({"max_words": 1}, ["one"]),
        ({"min_characters": 4, "max_characters": 8}, ["one two"]),
    ],
)
def test_text_length_counts_words_and_characters(tmp_path, step, kept):
    found, _, _ = curated(tmp_path, of("one", "one two", "one two three"), [{"text_length": step}])
    assert found == kept


def test_text_length_without_a_limit_is_refused():
    with pytest.raises(ValidationError, match="at least one of"):
        TextLength.model_validate({})


@pytest.mark.parametrize(
    ("step", "kept"),
    [
        ({"aspect_ratio": {"max": 3}}, ["square", "thin", "three to one"]),
        ({"min_size": {"pixels": 8}}, ["long", "square", "three to one"]),
        ({"max_pixels": {"pixels": 100}}, ["square", "thin"]),
        ({"min_size": {"pixels": 200, "of": "original"}}, ["square"]),
    ],
)
def test_sizes_are_judged_as_stored_or_as_they_were(tmp_path, step, kept):
    sizes = {"square": (8, 8), "three to one": (24, 8), "long": (80, 8), "thin": (2, 1)}

    def drawn(size):
        buffer = io.BytesIO()
        Image.new("RGB", size, "red").save(buffer, "PNG")
        return buffer.getvalue()

    original = {"original_width": 400, "original_height": 300}
    samples = [(name, drawn(size), original if name == "square" else {}) for name, size in sizes.items()]
    found, steps, _ = curated(tmp_path, samples, [step])
    assert found == kept
    if "of" in str(step):
        assert steps[0]["dropped"] == {"min_size: size unknown": 3}


def test_boilerplate_is_what_stands_under_too_many_images_or_is_a_file_name(tmp_path):
    texts = ["Photo 1", "photo 22", "PHOTO 3", "IMG_0012.JPG", "dsc", "a cat", "a cat", "a dog"]
    found, steps, _ = curated(tmp_path, of(*texts), [{"boilerplate": {"most": 2}}])
    assert found == ["a cat", "a cat", "a dog"]
    assert steps[0]["dropped"] == {
        "boilerplate: caption is like a file's name": 5,
    }
    texts = ["clip art 1", "clip art 22", "Clip Art 3", "a cat", "a cat", "a dog"]
    found, steps, _ = curated(tmp_path / "b", of(*texts), [{"boilerplate": {"most": 2, "keep": 1}}])
    assert [text for text in found if "art" not in text.lower()] == ["a cat", "a cat", "a dog"]
    assert len(found) == 4
    assert steps[0]["dropped"] == {"boilerplate: caption of more than 2 images": 2}
    assert steps[0]["counts"] == {"captions of too many images": 1.0}


def test_language_goes_by_the_data_or_by_a_sure_guess(tmp_path):
    samples = [*of("der Hund schläft auf dem Sofa", lang="de"), *of("a dog sleeps on the sofa", lang="en")]
    found, steps, _ = curated(tmp_path, samples, [{"language": {"by": "data"}}])
    assert found == ["a dog sleeps on the sofa"]
    assert steps[0]["dropped"] == {"language: in de": 1}
    found, steps, opened = curated(tmp_path / "guess", samples, ["language"])
    assert found == ["a dog sleeps on the sofa"]
    assert opened.column("language").tolist() == ["en"]
    found, steps, _ = curated(tmp_path / "unsure", of("ok", "ja"), [{"language": {"probability": 1.0}}])
    assert len(found) == 2
    assert steps[0]["counts"]["unsure"] >= 1


def drawing(seed: int, size: int = 96, noise: int = 0) -> Image.Image:
    """Some shapes on white."""
    random = np.random.default_rng(seed)
    picture = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(picture)
    for _ in range(6):
        x, y, w, h = random.random(4) * size * 0.8
        pen.ellipse((x, y, x + w * 0.7 + 4, y + h * 0.7 + 4), fill=tuple(random.integers(0, 255, 3).tolist()))
    if noise:
        pixels = np.asarray(picture).astype(int) + np.random.default_rng(noise).integers(-6, 7, (size, size, 3))
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return picture


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_copies_that_were_recompressed_or_resized_have_near_hashes_and_others_have_not():
    originals = np.array([perceptual_hash(encoded(drawing(n))) for n in range(40)], np.uint64)
    jpegs = [perceptual_hash(encoded(drawing(n), "JPEG", quality=60)) for n in range(40)]
    small = [perceptual_hash(encoded(drawing(n).resize((61, 61), Image.Resampling.LANCZOS))) for n in range(40)]
    for copies in (jpegs, small):
        assert distances(originals, np.array(copies, np.uint64)).max() <= 6
    others = distances(originals[:, None], originals[None])[~np.eye(40, dtype=bool)]
    assert others.min() > 10
    assert perceptual_hash(encoded(Image.new("RGB", (50, 40), "navy"))) == FLAT


def test_near_duplicates_go_but_for_the_one_with_the_lowest_id_and_flat_images_stay(tmp_path):
    flat = [(f"flat {n}", encoded(Image.new("RGB", (20 + n, 20), "white")), {}) for n in range(3)]
    copies = [(f"copy {n}", encoded(drawing(1, noise=n)), {}) for n in range(4)]
    others = [(f"other {n}", encoded(drawing(n + 5)), {}) for n in range(4)]
    broken = [("broken", encoded(drawing(30))[:500], {})]
    found, steps, _opened = curated(tmp_path, [*flat, *copies, *others, *broken], ["near_duplicates"])
    assert [text for text in found if not text.startswith("copy")] == [f"flat {n}" for n in range(3)] + [
        f"other {n}" for n in range(4)
    ]
    assert sum(text.startswith("copy") for text in found) == 1
    assert steps[0]["dropped"] == {
        "near_duplicates: looks like another one, within 4 bits": 3,
        "near_duplicates: image cannot be decoded": 1,
    }


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40), st.integers(0, 8), st.randoms())
def test_pieces_bring_together_all_that_is_within_so_many_bits(values, bits, random):
    values = values + [value ^ sum(1 << random.randrange(64) for _ in range(bits)) & (2**64 - 1) for value in values]
    hashes = np.array(values, np.uint64)
    expected = np.zeros(len(hashes), bool)
    for place in range(1, len(hashes)):
        expected[place] = (distances(hashes[place], hashes[:place]) <= bits).any()
    found = np.zeros(len(hashes), bool)
    for groups in pieces(hashes, bits + 1).T:
        found |= near_earlier(groups, hashes, bits)
    assert (found == expected).all()


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5), max_size=200), st.integers(0, 250))
def test_the_number_at_a_rank_is_that_of_the_sorted_list(values, rank):
    pieces_of = [np.array(values[start : start + 7], np.uint64) for start in range(0, len(values), 7)]
    found, count = at_rank(pieces_of, lambda n: rank)
    assert count == len(values)
    assert found == (sorted(values)[min(rank, count - 1)] if values else None)


@pytest.mark.parametrize(
    ("step", "number"),
    [({"share": 0.25}, 10), ({"share": 0.26}, 11), ({"count": 7}, 7), ({"count": 400}, 40), ({"share": 1.0}, 40)],
)
def test_a_sample_has_exactly_the_number_that_was_asked_for(tmp_path, step, number):
    texts = [f"thing {n}" for n in range(40)]
    found, _, _ = curated(tmp_path, of(*texts), [{"sample": step}])
    assert len(found) == number


def test_a_smaller_sample_lies_in_a_larger_one_and_another_seed_draws_others(tmp_path):
    texts = [f"thing {n}" for n in range(40)]
    drawn = [
        set(curated(tmp_path / str(place), of(*texts), [{"sample": step}])[0])
        for place, step in enumerate([{"count": 10}, {"count": 20}, {"count": 20, "seed": 1}])
    ]
    assert drawn[0] < drawn[1] != drawn[2]


def test_a_stratified_sample_has_its_share_of_every_value(tmp_path):
    samples = [s for name, n in (("cat", 20), ("dog", 4), ("owl", 1)) for s in of(*[name] * n, concept=name)]
    found, steps, _ = curated(tmp_path, samples, [{"sample_by": {"column": "concept", "share": 0.25, "most": 4}}])
    assert found == ["cat"] * 4 + ["dog", "owl"]
    assert steps[0]["counts"] == {"strata": 3.0}


def scores_file(tmp_path, rows):
    table = pa.table({"uid": [f"{n:032x}" for n in rows], "score": pa.array([n / 10 for n in rows], pa.float64())})
    pq.write_table(table, tmp_path / "scores.parquet")
    return str(tmp_path / "scores.parquet")


def test_scores_of_others_are_joined_by_the_samples_own_ids(tmp_path):
    file = scores_file(tmp_path, [5, 3, 4, 9, 77])
    samples = [sample for n in range(10) for sample in of(f"thing {n}", uid=f"{n:032x}")]
    steps = [{"join": {"file": file, "take": ["score"]}}, {"threshold": {"column": "score", "min": 0.4}}]
    found, report, opened = curated(tmp_path, samples, steps)
    assert found == ["thing 4", "thing 5", "thing 9"]
    assert report[0]["counts"] == {"not in the file": 6.0}
    assert report[1]["dropped"]["threshold: no score"] == 6
    assert sorted(opened.column("score").tolist()) == pytest.approx([0.4, 0.5, 0.9])


def test_a_column_that_the_file_lacks_is_named(tmp_path):
    file = scores_file(tmp_path, [1])
    with pytest.raises(DataError, match=r"scores\.parquet has no column 'beauty'"):
        curated(tmp_path, of("a", uid="1"), [{"join": {"file": file, "take": ["beauty"]}}])


def test_a_uid_file_chooses_and_repeats(tmp_path):
    wanted = np.array([(0, 3), (0, 3), (0, 5), (0, 99)], np.dtype("u8,u8"))
    np.save(tmp_path / "wanted.npy", wanted)
    samples = [sample for n in range(8) for sample in of(f"thing {n}", uid=f"{n:032x}")]
    found, steps, _opened = curated(tmp_path, samples, [{"uid_list": {"file": str(tmp_path / "wanted.npy")}}])
    assert found == ["thing 3", "thing 3", "thing 5"]
    assert steps[0]["dropped"] == {"uid_list: not in the file": 6}


@pytest.mark.parametrize(("keep", "kept"), [("any", 8), ("all", 2), ("none", 2)])
def test_set_operations_between_data_sets(tmp_path, keep, kept):
    def others(store, data):
        first, second = (
            run_stage(
                store,
                CurateStage.model_validate({"data": "pairs", "steps": [{"threshold": {"column": "width", **limits}}]}),
                tmp_path / name,
                "curate",
                name * 64,
                {"data": data},
            )[0]
            for name, limits in (("c", {"max": 6}), ("d", {"min": 5, "max": 8}))
        )
        return {"steps.0.of.0": first, "steps.0.of.1": second}

    samples = [(f"thing {n}", encoded(Image.new("RGB", (n + 1, 4), "red")), {}) for n in range(10)]
    found, _, _ = curated(tmp_path, samples, [{"members": {"of": ["one", "two"], "keep": keep}}], others)
    assert len(found) == kept


def test_semdedup_keeps_what_the_official_code_keeps():
    given, expected = case("semdedup_easy")["inputs"], case("semdedup_easy")["expected"]
    unit = given["embeddings"] / np.linalg.norm(given["embeddings"], axis=1, keepdims=True)
    for key in [key for key in expected if key.startswith("kept_eps")]:
        eps, kept = float(key.rpartition("_")[2]), []
        for cluster in np.unique(given["cluster_label"]):
            members = np.flatnonzero(given["cluster_label"] == cluster)
            order = np.array([row for row in expected["order_by_cluster"][::-1] if row in members])
            kept += order[closest_earlier(unit[order].astype(np.float32)) <= 1 - eps].tolist()
        assert sorted(kept) == sorted(np.asarray(expected[key]).tolist()), key


def test_far_from_the_centre_comes_first_as_in_the_official_code_where_centres_have_any_length():
    given, expected = (case("semdedup_sort_nonspherical")[part] for part in ("inputs", "expected"))
    points, centres, labels = (given[name] for name in ("embeddings", "centroids", "cluster_label"))
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    order = []
    for cluster, centre in enumerate(centres):
        members = np.flatnonzero(labels == cluster)
        _, squares = nearest(unit[members], centre[None])  # of one cluster, in the same order as 1 - cosine
        order += members[np.argsort(-np.sqrt(squares), kind="stable")].tolist()
    assert order == np.asarray(expected["order_by_cluster"]).tolist()
    directions = centres / np.linalg.norm(centres, axis=1, keepdims=True)
    _, squares = zip(*(nearest(unit[[row]], directions[[labels[row]]]) for row in order))  # as `spherical` tells it
    assert np.concatenate(squares) / 2 == pytest.approx(expected["distance_to_centroid_in_that_order"], abs=1e-6)


def test_more_goes_with_a_larger_eps_and_pieces_do_not_matter(monkeypatch):
    random = np.random.default_rng(0)
    unit = random.normal(size=(300, 4)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    whole = closest_earlier(unit)
    monkeypatch.setattr("orchestrator.curation.semdedup.AT_ONCE", 7)
    assert np.allclose(closest_earlier(unit), whole, atol=1e-6)
    kept = [int((whole <= 1 - eps).sum()) for eps in (0.001, 0.01, 0.1, 0.5)]
    assert kept == sorted(kept, reverse=True)


def test_datacomps_basic_filter_is_a_recipe_of_ours(tmp_path):
    given, expected = case("datacomp_basic_filter")["inputs"], case("datacomp_basic_filter")["expected"]
    samples = []
    for place, uid in enumerate(given["uid"]):
        facts = {"uid": str(uid), "lang": "en" if given["is_english"][place] else "xx"}
        facts |= {"original_width": int(given["width"][place]), "original_height": int(given["height"][place])}
        samples.append((str(given["text"][place]) or " x", None, facts))
    steps = [
        {"language": {"by": "data"}},
        {"text_length": {"min_words": 3, "min_characters": 6}},
        {"min_size": {"pixels": 200, "of": "original"}},
        {"aspect_ratio": {"max": 3.0, "of": "original"}},
    ]
    _, _, opened = curated(tmp_path, samples, steps)
    kept = expected["kept"]
    spelt = [k if isinstance(k, str) else f"{int(k[0]):016x}{int(k[1]):016x}" for k in kept]
    assert sorted(opened.column("source_uid").tolist()) == sorted(spelt)


def test_the_weaker_caption_filter_of_datacomps_image_based_one_is_a_recipe_of_ours(tmp_path):
    given, expected = (case("datacomp_caption_filter")[part] for part in ("inputs", "expected"))
    languages = ["en" if english else "xx" for english in given["is_english"]]
    samples = [
        (str(text) or " x", None, {"uid": f"{place:032x}", "lang": lang})
        for place, (text, lang) in enumerate(zip(given["text"], languages))
    ]
    steps = [{"language": {"by": "data"}}, {"text_length": {"min_words": 2, "min_characters": 6}}]
    _, _, opened = curated(tmp_path, samples, steps)
    assert sorted(opened.column("source_uid").tolist()) == [f"{n:032x}" for n in np.flatnonzero(expected["mask"])]
