"""What is seen as a sample's caption: one that is drawn among its captions, or several joined.

A sample has captions in slots (original, generated, keywords, short, long) and languages. `slots` gives them weights;
a slot's weight is shared by its captions in the wanted language. `join` puts one of each slot behind the other, in the
stated order, as TL;DR does with the original and the generated caption (arXiv 2307.07341, section 3.3): the original
stays as it is, and where nothing was generated it is all there is. Tokenizers cut long texts, so the last part may not
survive; `Survival` counts. A sample that has none of what is wanted shows its primary caption.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

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
    join: Annotated[list[Slot], Field(min_length=1)] | None = None
    """Instead of drawing one: these kinds of captions as one text, in this order, for instance `[original,
    generated]`; one that a sample has not is left out."""
    separator: str = "; "
    """What stands between joined captions."""
    budget: dict[Slot, Annotated[int, Field(ge=1)]] = {}
    """Most tokens of a joined caption of each kind; longer ones lose words at their end. Default: all of it."""
    lang: str | None = None
    """Language code of the captions to draw from, for instance `en`; unknown ones count too. Default: any."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.join is not None and self.slots != {"original": 1.0}:
            raise ValueError("either slots (one caption is drawn) or join (several in one text), not both")
        if self.join is not None and len(set(self.join)) < len(self.join):
            raise ValueError("join names a kind of caption twice")
        without = [slot for slot in self.budget if slot not in (self.join or ())]
        if without:
            raise ValueError(f"budget is for captions that are joined; join does not name {', '.join(without)}")
        return self

    @property
    def generated_alone(self) -> bool:
        """Whether no caption that a person wrote is ever wanted."""
        return set(self.join or self.slots) == {"generated"}

    def wants(self, caption: Caption) -> bool:
        """Whether a caption's language is among those wanted."""
        return self.lang is None or caption.lang in (self.lang, UNKNOWN)


def choose(captions: Sequence[Caption], policy: CaptionPolicy, draw: float) -> str:
    """The text of one caption, by a uniform number in [0, 1); the primary one comes first in `captions`."""
    wanted = [c for c in captions if c.slot in policy.slots and policy.wants(c)]
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


def compose(
    captions: Sequence[Caption], policy: CaptionPolicy, draws: Sequence[float], shorten: Callable[[str, int], str]
) -> str:
    """The text that is seen of a sample.

    Args:
        captions: of the sample, the primary one first.
        draws: uniform numbers in [0, 1), one for each slot that may be joined.
        shorten: gives the beginning of a text that takes at most so many tokens (`Tokenizer.shorten`).
    """
    if policy.join is None:
        return choose(captions, policy, draws[0])
    parts = []
    for slot, draw in zip(policy.join, draws):
        found = [c.text for c in captions if c.slot == slot and policy.wants(c)]
        if found:
            text = found[int(draw * len(found))]
            parts.append(shorten(text, policy.budget[slot]) if slot in policy.budget else text)
    return policy.separator.join(filter(None, parts)) or captions[0].text


@dataclass
class Survival:
    """How many joined captions were shown, had the last part, and kept all of it through the tokenizer."""

    shown: int = 0
    with_last: int = 0
    whole: int = 0

    def add(self, captions: Sequence[Caption], policy: CaptionPolicy, fits: bool) -> None:
        """Count one shown text of these captions; `fits`: the tokenizer cut nothing off."""
        if policy.join is not None:
            last = any(c.slot == policy.join[-1] and policy.wants(c) for c in captions)
            self.shown, self.with_last, self.whole = (
                self.shown + 1,
                self.with_last + last,
                self.whole + (last and fits),
            )

    def merge(self, other: Mapping[str, int]) -> None:
        """Add what `as_json` gave elsewhere."""
        self.shown += other["shown"]
        self.with_last += other["with_last"]
        self.whole += other["whole"]

    def as_json(self) -> dict[str, int]:
        """Plain values."""
        return asdict(self)

    @property
    def share(self) -> float:
        """Share of the texts shown whose last part survived; of none, 1."""
        return self.whole / self.shown if self.shown else 1.0
