"""The evaluation protocol's split: disjoint, decided by name alone, in the stated proportions."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.splits import concept_splits, holdout_splits

DEFAULTS = {"seed": 0, "ood_style": "z", "unseen": 0.1, "held": 0.6}


def grid(num_concepts: int, styles: str = "abz") -> tuple[list[str], list[str]]:
    cells = [(f"concept {c}", s) for c in range(num_concepts) for s in styles]
    return [c for c, _ in cells], [s for _, s in cells]


def test_proportions_of_a_full_grid_are_exact():
    concepts, styles = grid(1176)
    counts = Counter(concept_splits(concepts, styles, **DEFAULTS).tolist())
    unseen = round(0.1 * 1176)
    held = round(0.6 * (1176 - unseen))
    assert counts == {"unseen": 3 * unseen, "id": held, "ood": 1176 - unseen, "train": 2 * (1176 - unseen) - held}
    assert held >= 600


cells = st.lists(st.tuples(st.sampled_from([*"pqrstuvw", None]), st.sampled_from([*"abcz", None])), max_size=60)


@settings(max_examples=200, deadline=None)
@given(cells, st.integers(0, 5), st.sampled_from([0.0, 0.3, 0.9]), st.sampled_from([0.0, 0.5, 0.9]))
def test_splits_mean_what_they_say(samples, seed, unseen, held):
    concepts, styles = [c for c, _ in samples], [s for _, s in samples]
    splits = concept_splits(concepts, styles, seed=seed, ood_style="z", unseen=unseen, held=held)
    by_concept = defaultdict(set)
    for concept, style, split in zip(concepts, styles, splits):
        if concept is None or style is None:
            assert split == "train"
            continue
        by_concept[concept].add((style, split))
    for found in by_concept.values():
        names = {split for _, split in found}
        assert len({style for style, _ in found}) == len(found)  # one cell, one split
        assert names == {"unseen"} or "train" in names
        assert all((style == "z") == (split == "ood") for style, split in found if split != "unseen")
        assert sum(split == "id" for _, split in found) <= 1


def test_splits_follow_names_and_not_order():
    concepts, styles = grid(50)
    order = np.random.default_rng(0).permutation(len(concepts))
    straight = concept_splits(concepts, styles, **DEFAULTS)
    shuffled = concept_splits([concepts[i] for i in order], [styles[i] for i in order], **DEFAULTS)
    assert (straight[order] == shuffled).all()
    assert (straight != concept_splits(concepts, styles, **{**DEFAULTS, "seed": 1})).any()


def test_both_training_styles_are_held_out_about_equally():
    concepts, styles = grid(1000)
    splits = concept_splits(concepts, styles, **DEFAULTS)
    held = Counter(style for style, split in zip(styles, splits) if split == "id")
    assert 0.4 < held["a"] / (held["a"] + held["b"]) < 0.6


def test_holdout_goes_by_each_samples_own_uid():
    uids = [f"{n:032x}" for n in range(4000)]
    splits = holdout_splits(uids, seed=0, holdout=0.25)
    assert 0.22 < (splits == "id").mean() < 0.28
    assert (holdout_splits(uids[100:], seed=0, holdout=0.25) == splits[100:]).all()
    assert (holdout_splits(uids, seed=0, holdout=0.0) == "train").all()
