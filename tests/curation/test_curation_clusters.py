"""Clustering and the choice within clusters: the released program's numbers, and what must hold of any choice."""

from __future__ import annotations

import json

import numpy as np
import pytest
from curation_lab import Ids, block, fit_and_judge, identities, store_features, tldr, tools
from data_shards import open_store, publish, run_stage, write_samples
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.curation.block import Block
from orchestrator.curation.cluster import Cluster
from orchestrator.curation.features import Reduction
from orchestrator.curation.kmeans import kmeans, nearest
from orchestrator.curation.select_per_cluster import SelectPerCluster, chosen
from orchestrator.data import source
from orchestrator.data.dataset import Dataset
from orchestrator.errors import StageError, UserError
from orchestrator.stages.base import Outcome
from orchestrator.stages.curate.config import CurateStage
from orchestrator.stages.dataset.config import DatasetStage


def groups(count: int, each: int, dims: int = 8, spread: float = 0.05, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points around `count` centres, shuffled, and the group of each."""
    random = np.random.default_rng(seed)
    group = random.permutation(np.repeat(np.arange(count), each))
    return random.normal(size=(count, dims))[group] + spread * random.normal(size=(len(group), dims)), group


def same_partition(first: np.ndarray, second: np.ndarray) -> bool:
    pairs = set(zip(first.tolist(), second.tolist()))
    return len(pairs) == len(set(first.tolist())) == len(set(second.tolist()))


@pytest.mark.parametrize("count", [2, 7, 40])
def test_kmeans_finds_groups_that_lie_apart(count):
    points, group = groups(count, 30)
    found = kmeans(points, count)
    labels, squares = nearest(points, found.centres)
    assert same_partition(labels, group)
    means = np.stack([points[group == one].mean(axis=0) for one in range(count)])
    assert found.inertia == pytest.approx(((points - means[group]) ** 2).sum(), rel=1e-9)
    assert found.inertia == pytest.approx(squares.sum(), rel=1e-9)
    assert found.sizes.tolist() == [30] * count


def test_kmeans_of_fewer_different_points_than_clusters_ends():
    points = np.repeat(np.eye(3), 4, axis=0)
    found = kmeans(points, 5)
    assert found.inertia == pytest.approx(0, abs=1e-12)
    assert found.sizes.sum() == 12
    assert len(kmeans(points[:2], 5).centres) == 2


def test_spherical_centres_have_length_one_and_the_nearest_is_the_most_similar():
    points = np.random.default_rng(0).normal(size=(200, 6))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    found = kmeans(points, 9, spherical=True)
    np.testing.assert_allclose(np.linalg.norm(found.centres, axis=1), 1)
    labels, squares = nearest(points, found.centres)
    np.testing.assert_array_equal(labels, (points @ found.centres.T).argmax(axis=1))
    np.testing.assert_allclose(squares / 2, 1 - (points @ found.centres.T).max(axis=1), atol=1e-12)


def test_reduced_features_have_equal_variances_before_they_are_scaled_to_length_one():
    """The released preprocessing: centred projections over the root of the 1/n covariance's eigenvalues, then L2."""
    raw = np.random.default_rng(1).normal(size=(60, 9)).astype(np.float32) * np.arange(1, 10, dtype=np.float32)
    made = Reduction.fit(raw, 4)(raw)
    centred = raw.astype(np.float64) - raw.mean(axis=0, dtype=np.float64)
    u, _, _ = np.linalg.svd(centred, full_matrices=False)
    expected = u[:, :4] / np.linalg.norm(u[:, :4], axis=1, keepdims=True)
    np.testing.assert_allclose(made @ made.T, expected @ expected.T, atol=1e-5)


def test_lists_of_codes_shorter_than_the_wanted_components_are_an_error_that_says_what_to_do():
    case = tldr("pca_dimension_limit")
    short, long = case["code_lengths"]
    random = np.random.default_rng(0)
    with pytest.raises(UserError, match=r"256 principal components \(pca\) are more than the 197 dimensions"):
        Reduction.fit(random.integers(0, 1024, (600, short)), 256)
    codes = random.integers(0, 1024, (600, long))
    assert [*Reduction.fit(codes, 256)(codes).shape] == case["shape_at_591"]


def test_histograms_of_codes_do_not_depend_on_their_numbering_nor_on_their_places():
    random = np.random.default_rng(0)
    codes, names = random.integers(0, 50, (80, 30)).astype(np.uint16), random.permutation(50).astype(np.uint16)
    other = random.permuted(names[codes], axis=1)
    first, second = (Reduction.fit(raw, 8, histogram=True, idf=True)(raw).astype(np.float64) for raw in (codes, other))
    np.testing.assert_allclose(first @ first.T, second @ second.T, atol=1e-5)


def test_codes_that_the_fit_never_saw_count_nothing():
    seen = np.array([[0, 0, 1, 2], [2, 2, 2, 0]], np.uint16)
    reduction = Reduction.fit(seen, None, histogram=True)
    made = reduction(np.array([[0, 1, 9, 65535], [9, 9, 9, 9]], np.uint16))
    np.testing.assert_allclose(made, [[0.5**0.5, 0.5**0.5, 0], [0, 0, 0]], rtol=1e-6)


def planted(tmp_path, count=12, each=25):
    """Embeddings of samples whose codes and features show which group they are of; ids and groups."""
    features, group = groups(count, each)
    uids = identities(len(group))
    codes = (group[:, None] * 5 + np.random.default_rng(2).integers(0, 5, (len(group), 40))).astype(np.uint16)
    return store_features(tmp_path / "features", uids, image=features, codes=codes), uids, group


@pytest.mark.parametrize("options", [{}, {"idf": True}, {"feature": "image"}, {"feature": "image", "spherical": True}])
def test_cluster_finds_planted_groups_however_samples_lie_in_blocks(tmp_path, options):
    stored, uids, group = planted(tmp_path)
    operator = Cluster.model_validate({"features": "codes", "clusters": 12, **options})
    found = []
    for order, cuts in [(np.arange(len(uids)), 1), (np.random.default_rng(5).permutation(len(uids)), 7)]:
        blocks = [Block(Ids(uids[part], len(uids)), {}) for part in np.array_split(order, cuts)]
        _, verdicts = fit_and_judge(operator, blocks, tools(features=stored))
        labels = np.empty(len(uids), np.uint32)
        labels[order] = np.concatenate([verdict.columns["cluster"] for verdict in verdicts])
        assert same_partition(labels, group)
        found.append(labels)
    np.testing.assert_array_equal(*found)


def test_cluster_fits_to_a_sample_that_does_not_depend_on_blocks(tmp_path):
    stored, uids, _ = planted(tmp_path)
    operator = Cluster.model_validate({"features": "codes", "feature": "image", "sample": 40})
    fits = []
    for cuts in (1, 9):
        blocks = [Block(Ids(part, len(uids)), {}) for part in np.array_split(uids, cuts)]
        fits.append(fit_and_judge(operator, blocks, tools(features=stored))[0])
    assert fits[0]["sizes"].sum() == 40
    assert len(fits[0]["centres"]) == round(len(uids) ** 0.5)
    np.testing.assert_array_equal(fits[0]["centres"], fits[1]["centres"])
    assert operator.facts(fits[0])["samples fitted"] == 40


def test_samples_without_features_are_left_out_with_that_reason(tmp_path):
    features = np.ones((4, 3), np.float32)
    features[1] = 0  # what `embed` stores of an image that cannot be decoded
    uids = identities(5)
    stored = store_features(tmp_path / "features", uids[:4], image=features)
    operator = Cluster.model_validate({"features": "codes", "feature": "image", "clusters": 1})
    _, (verdict,) = fit_and_judge(operator, [block(uids)], tools(features=stored))
    assert verdict.reasons.tolist() == ["", "no features", "", "", "no features"]
    with pytest.raises(StageError, match="features of none of these samples"):
        fit_and_judge(operator, [block(identities(3, seed=9))], tools(features=stored))


def test_the_released_stride_and_the_better_half_are_reproduced():
    case = tldr("select_stride_then_itm")
    stays = chosen(case["cluster_label"], 1 / 5)
    np.testing.assert_array_equal(stays, case["selected_before_itm"])
    np.testing.assert_array_equal(stays[np.isin(stays, case["half_itm_ids"])], case["selected"])


Clusters = st.lists(st.integers(0, 6), min_size=1, max_size=60)


@given(Clusters, st.sampled_from([0.1, 0.2, 0.25, 0.3, 0.5, 2 / 3, 1.0]), st.booleans())
def test_every_cluster_keeps_its_share_rounded_up(labels, ratio, by_chance):
    labels = np.array(labels, np.uint64)
    order = np.random.default_rng(0).integers(0, 1 << 60, len(labels)) if by_chance else None
    stays = chosen(labels, ratio, order)
    assert len(set(stays.tolist())) == len(stays)
    for one in set(labels.tolist()):
        assert (labels[stays] == one).sum() == int(np.ceil(round((labels == one).sum() * ratio, 9)))


@pytest.mark.parametrize("choice", ["uniform", "stride"])
def test_what_a_cluster_keeps_depends_on_the_samples_alone(choice):
    uids, labels = np.sort(identities(300), order=("high", "low")), np.random.default_rng(3).integers(0, 9, 300)
    operator, group = SelectPerCluster(ratio=0.3, choice=choice), labels.astype(np.uint64)
    whole = operator.compare({"uid": uids, "group": group}, None)
    for bucket in (labels % 2 == 0, labels % 2 == 1):
        part = operator.compare({"uid": uids[bucket], "group": group[bucket]}, None)
        assert part.reasons.tolist() == whole.reasons[bucket].tolist()
    assert set(whole.reasons) == {"", "not chosen in its cluster"}
    assert whole.counts == {"clusters": 9, "clusters of 10 to 99": 9}


def test_another_seed_chooses_others():
    uids, group = np.sort(identities(400), order=("high", "low")), np.zeros(400, np.uint64)
    first, second = (
        SelectPerCluster(seed=seed).compare({"uid": uids, "group": group}, None).reasons == "" for seed in (0, 1)
    )
    assert first.sum() == second.sum() == 100
    assert 5 < (first & second).sum() < 50


def test_a_stage_clusters_and_keeps_a_share_of_each_cluster(tmp_path):
    store, folder = open_store(tmp_path / "store"), write_samples(tmp_path / "pets", range(24), 3)
    source.prepare(str(folder), store)
    data, _ = run_stage(store, DatasetStage(source=str(folder)), tmp_path, "dataset", "f1")
    uids = Dataset.open(data).column("uid")
    features = np.eye(4, dtype=np.float32)[np.arange(23) % 4]
    store_features(tmp_path / "features", uids[:23], image=features)
    stored = publish(store, tmp_path / "features", "embed", "e1", Outcome())
    steps = [
        {"cluster": {"features": "features", "feature": "image", "clusters": 4}},
        {"select_per_cluster": {"ratio": 0.5}},
    ]
    stage = CurateStage.model_validate({"data": "pairs", "steps": steps})
    inputs = {"data": data, "steps.0.features": stored}
    handle, _ = run_stage(store, stage, tmp_path, "curate", "f2", inputs)
    kept = Dataset.open(handle)
    place = {uid: n for n, uid in enumerate(Dataset.open(data).uids)}
    group = np.array([place[uid] % 4 for uid in kept.uids])
    assert same_partition(group, kept.column("cluster"))
    assert np.bincount(group).tolist() == [3, 3, 3, 3]  # of 6, 6, 6 and 5
    report = json.loads(handle.read("report.json"))
    assert report["steps"][0]["dropped"] == {"cluster: no features": 1}
    assert report["steps"][0]["counts"]["clusters"] == 4
    assert report["steps"][1]["counts"] == {"clusters": 4, "clusters of 2 to 9": 4}
    assert "fitted-0-cluster.safetensors" in handle.manifest.files
