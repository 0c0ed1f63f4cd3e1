"""Which caption of a sample is seen: a policy that draws one among its captions.

A sample has captions in slots (original, generated, keywords, short, long) and languages. The policy gives slots
weights; a slot's weight is shared by its captions in the wanted language. A sample that has none of them shows its
primary caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from orchestrator.recipe.schema import Config

if TYPE_CHECKING:
    from orchestrator.data.dataset import Caption

Slot = Literal["original", "generated", "keywords", "short", "long"]
SLOTS: tuple[Slot, ...] = ("original", "generated", "keywords", "short", "long")
UNKNOWN = "und"
"""Language code of captions whose language nobody stated."""


class CaptionPolicy(Config):
    """Which caption of a sample is seen."""

    slots: Annotated[dict[Slot, Annotated[float, Field(gt=0)]], Field(min_length=1)] = {"original": 1.0}
    """Relative weight of each kind of caption, for instance `{original: 1, keywords: 1}`."""
    lang: str | None = None
    """Language code of the captions to draw from, for instance `en`; unknown ones count too. Default: any."""


def choose(captions: Sequence[Caption], policy: CaptionPolicy, draw: float) -> str:
    """The text of one caption, by a uniform number in [0, 1); the primary one comes first in `captions`."""
    wanted = [
        c for c in captions if c.slot in policy.slots and (policy.lang is None or c.lang in (policy.lang, UNKNOWN))
    ]
    if not wanted:
        return captions[0].text
    slots: dict[str, float] = {str(slot): weight for slot, weight in policy.slots.items()}
    sharing = {slot: sum(c.slot == slot for c in wanted) for slot in slots}
    weights = [slots[c.slot] / sharing[c.slot] for c in wanted]
    remaining = draw * sum(weights)
    for caption, weight in zip(wanted, weights):
        remaining -= weight
        if remaining < 0:
            return caption.text
    return wanted[-1].text
