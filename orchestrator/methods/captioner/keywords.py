"""Keywords and phrases of captions, by a rule that needs no language model.

A word is a run of at least three letters that is no function word. A phrase is two words next to each other in a
caption (`red apple`). Each counts once a caption. TL;DR takes nouns and noun phrases found by NLTK's tagger; this rule
keeps some verbs and adjectives, and works for languages that are written with spaces.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

WORD = re.compile(r"[^\W\d_]+")
_WORDS = (
    "about above after all also and any are around been before behind being below beside between but can could did "
    "does down for from had has have her here his how inside into its just like many may more most much near next "
    "not off one only onto other our out outside over own per same she should some such than that the their them "
    "then there these they this those through too two under upon very was were what when where which while who why "
    "will with within without would you your"
)
FUNCTION_WORDS = frozenset(_WORDS.split())


def keywords(captions: Iterable[str], limit: int) -> list[str]:
    """The `limit` most frequent keywords and phrases, the most frequent first, equally frequent ones by alphabet."""
    counts: Counter[str] = Counter()
    for caption in captions:
        words = WORD.findall(caption.lower())
        content = [len(word) >= 3 and word not in FUNCTION_WORDS for word in words]
        found = {word for word, counts_as in zip(words, content) if counts_as}
        pairs = zip(words, words[1:], content, content[1:])
        counts.update(found | {f"{one} {two}" for one, two, first, second in pairs if first and second})
    return sorted(counts, key=lambda phrase: (-counts[phrase], phrase))[:limit]
