"""Concepts in captions, and balancing by them: MetaCLIP's own results, and what must hold on any captions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from curation_lab import block, fit_and_judge, identities, metaclip
from data_shards import open_store, run_stage, sample, write_shard
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.curation.balance import Balance, cap_of, probabilities, tail_of
from orchestrator.curation.concepts import Finder, flat, plural, read_entries, singular, spaced, worded
from orchestrator.curation.tag_concepts import TagConcepts
from orchestrator.data import source
from orchestrator.data.dataset import Dataset
from orchestrator.data.files import bring_file, identify_file
from orchestrator.errors import UserError
from orchestrator.stages.curate.config import CurateStage
from orchestrator.stages.dataset.config import DatasetStage


def found(finder: Finder, texts: list[str]) -> list[list[int]]:
    lists: list[list[int]] = [[] for _ in texts]
    for text, entry in zip(*finder(texts)):
        lists[text].append(int(entry))
    return lists


def test_captions_are_padded_as_metaclip_pads_them():
    case = metaclip("H1")
    assert [spaced(text) for text in case["texts"]] == case["expected"]


def test_entries_are_found_as_both_of_metaclips_matchers_find_them():
    case = metaclip("H2")
    assert found(Finder(case["metadata"], "metaclip"), case["texts"]) == case["expected"]


@pytest.mark.parametrize("shard", [0, 1])
def test_the_inverted_index_is_metaclips(shard):
    case, texts = metaclip("H3"), metaclip("H1")["texts"]
    rows = Finder(metaclip("H2")["metadata"], "metaclip")(texts if shard == 0 else texts[:4] * 3)
    assert sorted(zip(rows[0].tolist(), rows[1].tolist())) == sorted(
        (text, entry) for entry, text in case[f"inverted_shard{shard}"]
    )


Texts = st.lists(st.text("ab ,.\n\0", max_size=14), min_size=1, max_size=6)
Entries = st.lists(st.text("ab ", min_size=1, max_size=5).filter(str.strip), min_size=1, max_size=8, unique=True)


@given(Texts, Entries)
def test_all_entries_are_found_overlapping_nested_and_adjacent_ones_too(texts, entries):
    naive = [
        [n for n, entry in enumerate(entries) if f" {entry} " in spaced(text.replace("\0", " "))] for text in texts
    ]
    assert found(Finder(entries, "metaclip"), texts) == naive


@given(st.lists(st.text("aBß_- \0é猫", max_size=12), min_size=1, max_size=5))
def test_captions_of_a_block_do_not_reach_into_each_other(texts):
    for matching in ("metaclip", "words"):
        finder = Finder(["a", "B a", "b", "ß", "é", "猫"], matching)
        assert found(finder, texts) == [found(finder, [text])[0] for text in texts]


@given(st.text())
def test_text_as_words_stays_as_it_is_when_done_again(text):
    assert worded(worded(text)) == worded(text)


@pytest.mark.parametrize(
    ("entry", "texts"),
    [
        ("hot dog", ["two Hot-Dogs!", "a hot_dog", "HOT DOG stand"]),
        ("dogs", ["a dog", "(dogs)", "the dog's tail"]),
        ("church", ["old churches", "Church."]),
        ("berry", ["berries, red"]),
        ("tooth", ["white teeth"]),
        ("women", ["a woman's hat"]),
        ("glass", ["glasses"]),
        ("Katze", ["KATZE."]),
        ("猫", ["黒猫の絵"]),
        ("t-shirt", ["a red T-shirt", "t shirts"]),
    ],
)
def test_words_are_found_in_any_case_and_number(entry, texts):
    assert found(Finder([entry], "words"), texts) == [[0]] * len(texts)


def test_parts_of_words_and_other_words_are_not_found():
    assert (
        found(Finder(["art", "hot dog", "bus", "us"], "words"), ["start party", "dog hot", "busy", "house"])
        == [[]] * 4
    )


@pytest.mark.parametrize("word", ["dog", "box", "berry", "toy", "leaf", "child", "glass", "bus", "church", "tomato"])
def test_a_plural_is_not_its_singular(word):
    assert plural(word) != word
    assert singular(word) == word
    assert word == "bus" or singular(plural(word)) == word


def test_entries_that_are_equal_as_words_are_found_together():
    assert found(Finder(["Dog", "dogs", "cat", "  "], "words"), ["a dog", "cats"]) == [[0, 1], [2]]


def test_lists_of_concepts_are_read_and_refused(tmp_path):
    (tmp_path / "a.txt").write_text("hot dog\n\n cat \n")
    (tmp_path / "a.json").write_text('["hot dog", "cat"]')
    assert read_entries(tmp_path / "a.txt") == read_entries(tmp_path / "a.json") == ["hot dog", "cat"]
    (tmp_path / "b.json").write_text('{"cat": 1}')
    with pytest.raises(UserError, match="not a JSON list of strings"):
        read_entries(tmp_path / "b.json")
    for wrong in ({}, {"file": "a.txt", "concepts": ["a"]}, {"file": "a.csv"}):
        with pytest.raises(ValidationError, match="tag_concepts"):
            TagConcepts.model_validate(wrong)


def test_thresholds_and_tail_shares_are_metaclips():
    case = metaclip("H5")
    counts = np.array(case["entry_count"])
    assert {cap: tail_of(int(cap), counts) for cap in case["t_to_p"]} == pytest.approx(case["t_to_p"])
    assert {tail: cap_of(float(tail), counts) for tail in case["p_to_t"]} == case["p_to_t"]
    np.testing.assert_allclose(probabilities(counts, 100), case["count_to_prob_t100"])


def pool():
    """The index of H4: entries of each pair, and the pairs' lists."""
    case = metaclip("H4")
    entry, pair = np.array(case["inverted"]).T
    lists = [[] for _ in range(4000)]
    for one, where in zip(entry.tolist(), pair.tolist()):
        lists[where].append(one)
    return case, entry, pair, lists


def test_the_kept_set_is_metaclips_with_its_draws():
    case, entry, pair, _ = pool()
    draws = np.random.RandomState(123).random_sample(case["n_draws"])
    np.testing.assert_allclose(draws[:10], case["uniform_draws_first10"])
    chances = probabilities(np.array(case["entry_count"]), case["t"])
    assert np.unique(pair[draws < chances[entry]]).tolist() == sorted(case["expected_kept"])


def balanced(lists, cuts=3, order=None, **options):
    """Places of the pairs that stay, and verdicts."""
    uids, order = identities(len(lists)), np.arange(len(lists)) if order is None else order
    blocks = [block(uids[part], concepts=[lists[n] for n in part]) for part in np.array_split(order, cuts)]
    fitted, verdicts = fit_and_judge(Balance.model_validate(options), blocks, None)
    reasons = np.concatenate([verdict.reasons for verdict in verdicts])
    return np.sort(order[reasons == ""]), fitted, verdicts


def test_balancing_keeps_as_many_as_metaclip_on_average():
    case, *_, lists = pool()
    sizes = []
    for seed in range(20):
        kept, fitted, verdicts = balanced(lists, cap=case["t"], seed=seed)
        sizes.append(len(kept))
        assert sum(verdict.counts["expected to stay"] for verdict in verdicts) == pytest.approx(
            case["expected_size_mean"]
        )
    assert fitted["counts"].tolist() == case["entry_count"]
    spread = case["official_size_over_200_seeds"]["std"]
    assert np.mean(sizes) == pytest.approx(case["expected_size_mean"], abs=4 * spread / 20**0.5)
    assert np.std(sizes) == pytest.approx(spread, rel=0.6)


def test_without_a_reachable_cap_every_matched_pair_stays_and_samples_of_rare_concepts_always_do():
    case, entry, pair, lists = pool()
    assert len(balanced(lists, cap=10**9)[0]) == case["expected_kept_inf"] == len(np.unique(pair))
    rare = np.array(case["entry_count"])[entry] <= case["t"]
    assert set(pair[rare]) <= set(balanced(lists, cap=case["t"])[0])


def test_what_stays_does_not_depend_on_order_and_blocks():
    lists = pool()[3]
    order = np.random.default_rng(0).permutation(len(lists))
    first, second = balanced(lists, cap=50), balanced(lists, cuts=9, order=order, cap=50)
    np.testing.assert_array_equal(first[0], second[0])
    assert set(np.concatenate([verdict.reasons for verdict in first[2]])) == {
        "",
        "no concept",
        "not drawn, its concepts are common",
    }


def test_balancing_levels_the_concepts_and_keeps_their_ranks():
    case, *_, lists = pool()
    counts = np.array(case["entry_count"])
    after = np.mean(
        [
            np.bincount(flat([lists[n] for n in balanced(lists, cap=60, seed=seed)[0]])[1], minlength=len(counts))
            for seed in range(10)
        ],
        axis=0,
    )
    assert (after[counts > 60] < counts[counts > 60]).all()

    def entropy(values):
        shares = values[values > 0] / values.sum()
        return -(shares * np.log(shares)).sum()

    assert entropy(after) > entropy(counts) + 0.1
    assert after[0] > after[5] > after[-1]


@pytest.mark.parametrize("wrong", [{}, {"cap": 5, "tail": 0.1}])
def test_a_cap_or_a_tail_share_is_needed(wrong):
    with pytest.raises(ValidationError, match="one of them"):
        Balance.model_validate(wrong)


def test_a_stage_tags_by_a_file_and_balances(tmp_path):
    captions = ["a dog"] * 30 + ["a Cat and a dog"] * 4 + ["nothing"] * 2
    members = [m for n, caption in enumerate(captions) for m in sample(f"{n:04d}", n, f"{caption} {n}")]
    write_shard(tmp_path / "pets" / "00000.tar", members[: len(members) // 2])
    write_shard(tmp_path / "pets" / "00001.tar", members[len(members) // 2 :])
    (tmp_path / "list.txt").write_text("cat\ndog\nunicorn\n")
    store = open_store(tmp_path / "store")
    source.prepare(str(tmp_path / "pets"), store)
    bring_file(str(tmp_path / "list.txt"), store)
    data, _ = run_stage(store, DatasetStage(source=str(tmp_path / "pets")), tmp_path, "dataset", "f1")
    steps = [{"tag_concepts": {"file": str(tmp_path / "list.txt")}}, {"balance": {"cap": 10}}]
    stage = CurateStage.model_validate({"data": "pairs", "steps": steps})
    assert stage.external_sources() == [str(tmp_path / "list.txt")]
    sources = {name: identify_file(name, store).place for name in stage.external_sources()}
    handle, _ = run_stage(store, stage, tmp_path, "curate", "f2", {"data": data}, sources)
    kept = Dataset.open(handle)
    concepts = [list(values) for values in kept.column("concepts")]
    assert concepts.count([0, 1]) == 4
    assert 2 <= concepts.count([1]) < 25
    tagged, balance = json.loads(handle.read("report.json"))["steps"]
    assert tagged["counts"] == {
        "samples with a concept": 34,
        "concepts found": 38,
        "'dog', at least": 34,
        "'cat', at least": 4,
    }
    assert balance["counts"]["concepts above the cap"] == 1
    assert balance["dropped"]["balance: no concept"] == 2
