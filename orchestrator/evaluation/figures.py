"""From the ranks of every model to what is kept: named figures with intervals, and paired comparisons.

Names are stable: `zeroshot.id.top1`, its interval `.low` and `.high`, `zeroshot.id.chance_top1`, `zeroshot.id.n`,
`retrieval.ood.text_to_image.r5`. Shares are between 0 and 1. Everything here is a function of ranks and settings, and
identifies a model by its place in the stage's list, never by a name that another recipe could spell otherwise.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.evaluation import metrics
from orchestrator.evaluation.protocol import Measure

if TYPE_CHECKING:
    import pyarrow as pa

Ranks = Mapping[str, np.ndarray]
"""One model's ranks [Q] by measure."""


def figures(
    measures: Sequence[Measure], ranks: Sequence[Ranks], samples: int, seed: int
) -> tuple[list[dict[str, float]], list[dict[str, Any]]]:
    """Flat figures of each model, and the paired comparisons of every model with every other.

    Args:
        ranks: by model.
        samples, seed: of the bootstrap.
    """
    flat: list[dict[str, float]] = [{} for _ in ranks]
    pairs: dict[tuple[int, int], dict[str, Any]] = {pair: {} for pair in itertools.permutations(range(len(ranks)), 2)}
    for measure in measures:
        for name, value in _facts(measure).items():
            for figure in flat:
                figure[name] = value
        hits = np.stack([model[measure.name] <= k for k in measure.ks for model in ranks], axis=1).astype(float)
        drawn = metrics.draws(hits, measure.units, samples, seed, measure.name)
        for number, k in enumerate(measure.ks):
            name = f"{measure.name}.{measure.label}{k}"
            first = number * len(ranks)
            for place, figure in enumerate(flat):
                low, high = metrics.interval(drawn[:, first + place])
                value = metrics.within(ranks[place][measure.name], k)
                figure |= {name: value, f"{name}.low": low, f"{name}.high": high}
            for (one, other), compared in pairs.items():
                compared[name] = metrics.compare(
                    flat[one][name], flat[other][name], drawn[:, first + one], drawn[:, first + other]
                )
        if measure.target is not None:
            for model, figure in zip(ranks, flat):
                recall = metrics.mean_class_recall(model[measure.name], measure.target)
                figure[f"{measure.name}.mean_class_recall"] = recall
    return flat, [{"model": one, "against": other, "figures": value} for (one, other), value in pairs.items()]


def describe(measure: Measure) -> dict[str, Any]:
    """What a table needs to know of a measure: its figures' names, sizes and chance."""
    return {
        "name": measure.name,
        "split": measure.split,
        "label": measure.label,
        "ks": list(measure.ks),
        "sizes": dict(measure.sizes),
        "chance": [metrics.chance(measure.candidates, measure.positives, k) for k in measure.ks],
        **measure.about,
    }


def predictions(measures: Sequence[Measure], ranks: Sequence[Ranks], uids: Sequence[str]) -> pa.Table:
    """Every question's rank by every model (`rank_0`, ...), measure by measure, in uid order within one.

    Columns: measure, uid (of the sample asked about), candidates, rank_i.
    """
    import pyarrow as pa

    parts = []
    for measure in measures:
        asked = np.array([uids[int(row)] for row in measure.rows])
        order = np.argsort(asked, kind="stable")
        columns = {
            "measure": pa.DictionaryArray.from_arrays(
                np.zeros(len(order), np.int32), pa.array([measure.name], pa.string())
            ),
            "uid": pa.array(asked[order].tolist(), pa.string()),
            "candidates": pa.array(measure.candidates[order].astype(np.int32)),
        }
        for place, model in enumerate(ranks):
            columns[f"rank_{place}"] = pa.array(model[measure.name][order].astype(np.int32))
        parts.append(pa.table(columns))
    return pa.concat_tables(parts).unify_dictionaries()


def _facts(measure: Measure) -> dict[str, float]:
    facts: dict[str, float] = {f"{measure.name}.{name}": float(value) for name, value in measure.sizes.items()}
    for k, value in zip(measure.ks, describe(measure)["chance"]):
        facts[f"{measure.name}.chance_{measure.label}{k}"] = value
    return facts
