"""Which samples are trained on and which are held out, decided by hashing names: the evaluation protocol as a column.

Where samples are a concept drawn in a style, four splits say what a test asks for:

    train    seen in training
    id       held-out (concept, style) cells whose concept is trained on in another style: a known thing, a known style
    ood      the held-out drawing style, of concepts that are trained on: a known thing, an unknown style
    unseen   concepts that are never trained on, in every style, the held-out one included

So every concept of `id` and `ood` has a `train` cell and none of `unseen` has. Which concepts and cells are taken
follows from a hash of (seed, purpose, concept): neither order nor number of samples matters, and what one concept
gets, its duplicates get.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from orchestrator.data.draws import integer, uniforms

SPLITS = ("train", "id", "ood", "unseen")


def concept_splits(
    concepts: Sequence[str | None],
    styles: Sequence[str | None],
    *,
    seed: int,
    ood_style: str | None,
    unseen: float,
    held: float,
) -> np.ndarray:
    """The split [n] of each sample by its concept and style; samples without either are trained on.

    `unseen`: share of the concepts drawn in a training style that is never trained on (concepts drawn in `ood_style`
    only are `unseen` too). `held`: share of the remaining concepts with two or more training styles that loses one of
    these to `id`.
    """
    drawn: dict[str, set[str]] = defaultdict(set)
    for concept, style in zip(concepts, styles):
        if concept is not None and style is not None and style != ood_style:
            drawn[concept].add(style)
    never = set(_share(drawn, unseen, seed, "unseen"))
    several = [concept for concept, found in drawn.items() if concept not in never and len(found) > 1]
    cells = {
        (concept, min(drawn[concept], key=lambda style: integer(seed, "cell", concept, style)))
        for concept in _share(several, held, seed, "held")
    }
    splits = []
    for concept, style in zip(concepts, styles):
        if concept is None or style is None:
            splits.append("train")
        elif concept in never or concept not in drawn:
            splits.append("unseen")
        elif style == ood_style:
            splits.append("ood")
        else:
            splits.append("id" if (concept, style) in cells else "train")
    return np.array(splits, object)


def holdout_splits(uids: Sequence[str], *, seed: int, holdout: float) -> np.ndarray:
    """The split [n] of samples without concepts: about a share `holdout` is `id`, each by its own uid."""
    return np.array(["id" if uniforms(seed, "holdout", uid)[0] < holdout else "train" for uid in uids], object)


def _share(concepts: Sequence[str] | dict[str, set[str]], share: float, seed: int, purpose: str) -> list[str]:
    """That share of the concepts, rounded: the first ones in hash order."""
    ordered = sorted(concepts, key=lambda concept: (integer(seed, purpose, concept), concept))
    return ordered[: round(share * len(ordered))]
