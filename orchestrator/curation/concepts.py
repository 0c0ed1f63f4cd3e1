"""Finding concepts in captions: all entries of a list at once, however many, overlapping and nested ones too.

An Aho-Corasick automaton reads a block's captions as one text, with a mark between them, and meets every entry where
it ends. Two ways to match:

    metaclip   text and entry between blanks, case as it is, some punctuation set apart; the entry is a substring
               (MetaCLIP, arXiv 2309.16671, `spacing`): "dog" is in "a dog," and not in "dogs", "Dog" or "(dog)"
    words      case and punctuation do not matter, nor whether the last word is in singular or plural; an entry in a
               script that sets no blanks between words (Chinese, Japanese, Thai, ...) may begin anywhere
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from orchestrator.errors import UserError

Matching = Literal["metaclip", "words"]
MARK = "\0"
SET_APART = ",.;:?!`"
AS_BLANKS = "\t\n\r"
SIGN = re.compile(rf"[^\w{MARK}]|_")
ASCII_SIGNS = {n: " " for n in range(128) if SIGN.match(chr(n))}
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
IRREGULAR = {
    "man": "men", "woman": "women", "person": "people", "child": "children", "foot": "feet", "tooth": "teeth",
    "goose": "geese", "mouse": "mice", "ox": "oxen", "leaf": "leaves", "knife": "knives", "wolf": "wolves",
    "wife": "wives", "life": "lives", "calf": "calves", "half": "halves", "shelf": "shelves", "loaf": "loaves",
    "scarf": "scarves", "thief": "thieves", "hoof": "hooves", "elf": "elves", "tomato": "tomatoes",
    "potato": "potatoes",
}  # fmt: skip
SINGULAR = {plural: singular for singular, plural in IRREGULAR.items()}


class Finder:
    """Finds the entries of a list. Entries that are equal in the way of matching are found together."""

    def __init__(self, entries: Sequence[str], matching: Matching) -> None:
        import ahocorasick

        self._normal = spaced if matching == "metaclip" else worded
        self._size = len(entries)
        pairs = [
            (form, number)
            for number, entry in enumerate(entries)
            for form in ([f" {entry} "] if matching == "metaclip" else forms(entry))
            if not form.isspace()
        ]
        places = {form: place for place, form in enumerate(dict.fromkeys(form for form, _ in pairs))}
        pairs.sort(key=lambda pair: places[pair[0]])
        self._entries = np.array([number for _, number in pairs], np.int64)
        counts = np.bincount([places[form] for form, _ in pairs], minlength=len(places))
        self._first = np.concatenate([[0], np.cumsum(counts)])
        self._automaton = ahocorasick.Automaton(ahocorasick.STORE_INTS)
        for form, place in places.items():
            self._automaton.add_word(form, place)
        self._automaton.add_word(MARK, len(places))
        self._automaton.make_automaton()

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Every entry of every text once: numbers of texts and of entries [m] int64, in this order."""
        joined = f" {MARK} ".join([text.replace(MARK, " ") for text in texts])
        hits = self._automaton.iter(self._normal(joined))
        found = np.fromiter(hits, [("end", np.int64), ("place", np.int64)])["place"]
        marks = found == len(self._first) - 1
        text, place = np.cumsum(marks)[~marks], found[~marks]
        sizes = self._first[place + 1] - self._first[place]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        entry = self._entries[np.repeat(self._first[place], sizes) + within]
        pairs = np.unique(np.repeat(text, sizes) * self._size + entry)
        return pairs // self._size, pairs % self._size


def spaced(text: str) -> str:
    """A text as MetaCLIP pads it (H1)."""
    for sign in SET_APART:
        text = text.replace(sign, f" {sign} ")
    for sign in AS_BLANKS:
        text = text.replace(sign, " ")
    return f" {text} "


def worded(text: str) -> str:
    """A text as lower-case words with one blank between and around them."""
    text = text.casefold()
    text = text.translate(ASCII_SIGNS) if text.isascii() else SIGN.sub(" ", text)
    return f" {' '.join(text.split())} "


def forms(entry: str) -> list[str]:
    """What is looked for of an entry among words: singular and plural of its last word, blanks where words end."""
    words = worded(entry).split()
    if not words:
        return []
    last = words[-1]
    spelt = dict.fromkeys(" ".join([*words[:-1], form]) for form in (last, plural(last), singular(last)))
    return [f"{_blank(form[0])}{form}{_blank(form[-1])}" for form in spelt]


def plural(word: str) -> str:
    """The plural of an English noun."""
    if word in IRREGULAR or not word[-1:].isascii():
        return IRREGULAR.get(word, word)
    if re.search("[^aeiou]y$", word):
        return f"{word[:-1]}ies"
    return f"{word}es" if re.search("(s|x|z|ch|sh)$", word) else f"{word}s"


def singular(word: str) -> str:
    """The singular of an English noun; a word that is not in the plural stays as it is."""
    if word in SINGULAR:
        return SINGULAR[word]
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if re.search("(ss|x|z|ch|sh)es$", word):
        return word[:-2]
    return word[:-1] if len(word) > 3 and re.search("[^suia]s$", word) else word


def read_entries(path: Path) -> list[str]:
    """A list of concepts: one a line (.txt), or a JSON list of strings (.json). UserError if it is none."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".json":
        return [line for line in map(str.strip, text.splitlines()) if line]
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"the list of concepts '{path.name}' is not JSON: {error}") from None
    if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
        raise UserError(f"'{path.name}' is not a JSON list of strings", 'write ["cat", "dog", ...]')
    return found


def flat(lists: Iterable[Sequence[int] | None]) -> tuple[np.ndarray, np.ndarray]:
    """A column of lists as numbers of rows and values, [m] int64 each."""
    rows = [() if values is None else values for values in lists]
    sizes = np.fromiter(map(len, rows), np.int64, len(rows))
    values = np.fromiter((value for row in rows for value in row), np.int64, int(sizes.sum()))
    return np.repeat(np.arange(len(rows)), sizes), values


def _blank(letter: str) -> str:
    """What stands before or behind a word that begins or ends with this letter."""
    return "" if UNSPACED.match(letter) else " "
