"""Joined captions: the original stays in front, parts keep to their budgets, and what survives is counted."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from orchestrator.data.captions import CaptionPolicy, Survival, compose
from orchestrator.data.dataset import Caption
from orchestrator.data.preprocess import Tokenizer

TOKENIZER = Tokenizer(context_length=12)
ORIGINAL = Caption("original", "en", "a tabby on a wall")
GENERATED = Caption("generated", "en", "a cat sitting on a brick wall")
FRENCH = Caption("generated", "fr", "un chat")
FIRST = [0.0] * 8


def seen(captions: list[Caption], draws: list[float] = FIRST, **policy) -> str:
    return compose(captions, CaptionPolicy(**policy), draws, TOKENIZER.shorten)


BOTH = ["original", "generated"]


@pytest.mark.parametrize(
    ("what", "captions", "policy", "text"),
    [
        ("in the stated order", [ORIGINAL, GENERATED], {"join": BOTH}, f"{ORIGINAL.text}; {GENERATED.text}"),
        ("whatever is stored first", [GENERATED, ORIGINAL], {"join": BOTH}, f"{ORIGINAL.text}; {GENERATED.text}"),
        ("the other way round", [ORIGINAL, GENERATED], {"join": BOTH[::-1]}, f"{GENERATED.text}; {ORIGINAL.text}"),
        ("nothing generated", [ORIGINAL], {"join": BOTH}, ORIGINAL.text),
        ("no original", [GENERATED], {"join": BOTH}, GENERATED.text),
        ("none of what is wanted", [ORIGINAL], {"join": ["short", "long"]}, ORIGINAL.text),
        ("another separator", [ORIGINAL, GENERATED], {"join": BOTH, "separator": ". "}, "a tabby on a wall. a cat "),
        ("a budget", [ORIGINAL, GENERATED], {"join": BOTH, "budget": {"generated": 2}}, "a tabby on a wall; a cat"),
        ("a large budget", [ORIGINAL], {"join": BOTH, "budget": {"original": 50}}, ORIGINAL.text),
        ("too small for a word", [ORIGINAL, Caption("generated", "en", "antidisestablishmentarianism")],
         {"join": BOTH, "budget": {"generated": 1}}, ORIGINAL.text),
        ("a language", [FRENCH, ORIGINAL, GENERATED], {"join": BOTH, "lang": "en"}, "a tabby on a wall; a cat si"),
    ],
)  # fmt: skip
def test_captions_are_joined(what, captions, policy, text):
    assert seen(captions, **policy).startswith(text)
    assert what != "nothing generated" or seen(captions, **policy) == ORIGINAL.text


def test_several_of_a_slot_are_drawn_among():
    texts = {seen([ORIGINAL, GENERATED, FRENCH], [0.0, draw, *FIRST], join=BOTH) for draw in (0.1, 0.6)}
    assert texts == {f"{ORIGINAL.text}; {GENERATED.text}", f"{ORIGINAL.text}; {FRENCH.text}"}


@pytest.mark.parametrize("most", range(1, 9))
def test_a_shortened_text_is_the_longest_beginning_that_fits(most):
    text = "an unbelievably  long-winded caption, of words"
    short = TOKENIZER.shorten(text, most)
    words = text.split()
    kept = len(short.split())
    assert short.split() == words[:kept]

    def tokens(number: int) -> int:
        return Tokenizer(context_length=77)([" ".join(words[:number])]).count_nonzero().item() - 2

    assert tokens(kept) <= most
    assert kept == len(words) or tokens(kept + 1) > most


@pytest.mark.parametrize(
    ("captions", "counts"),
    [
        ([ORIGINAL], (1, 0, 0)),
        ([ORIGINAL, FRENCH], (1, 1, 1)),
        ([ORIGINAL, GENERATED], (1, 1, 0)),
    ],
)
def test_the_last_part_survives_where_the_tokenizer_cuts_nothing_off(captions, counts):
    survival, policy = Survival(), CaptionPolicy(join=BOTH)
    text = compose(captions, policy, FIRST, TOKENIZER.shorten)
    survival.add(captions, policy, TOKENIZER.fits(text))
    assert (survival.shown, survival.with_last, survival.whole) == counts
    assert survival.share == counts[2]
    total = Survival(3, 2, 1)
    total.merge(survival.as_json())
    assert total.shown == 4


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"join": BOTH, "slots": {"short": 1.0}}, "not both"),
        ({"join": ["original", "original"]}, "twice"),
        ({"join": ["original"], "budget": {"generated": 3}}, "does not name generated"),
        ({"budget": {"generated": 3}}, "does not name generated"),
        ({"join": []}, "at least 1"),
    ],
)
def test_policies_that_cannot_be_are_refused(policy, message):
    with pytest.raises(ValidationError, match=message):
        CaptionPolicy(**policy)


def test_a_policy_survives_being_written_down():
    policy = CaptionPolicy(join=BOTH, budget={"original": 40})
    assert CaptionPolicy.model_validate(policy.model_dump(mode="json")) == policy


@pytest.mark.parametrize(
    ("policy", "alone"),
    [({}, False), ({"slots": {"generated": 1.0}}, True), ({"join": ["generated"]}, True), ({"join": BOTH}, False)],
)
def test_generated_captions_alone_are_recognised(policy, alone):
    assert CaptionPolicy(**policy).generated_alone is alone
