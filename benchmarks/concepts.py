"""How fast are concepts found in captions: captions a second on one core, by the size of the list and the matching?

Captions and concepts are made of pseudo-words: words are drawn by Zipf's law from a vocabulary, ten or so a caption
(about 60 characters), and entries are one to three words of the same vocabulary, so entries overlap and nest as real
ones do. Times are CPU seconds of this process, a block of 8,192 captions at a time as the `tag_concepts` operator does
it, from texts to lists of numbers; the automaton is built once, apart. Real captions with fewer or more hits differ.

    python -m benchmarks.concepts
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from orchestrator.curation.block import Block
from orchestrator.curation.tag_concepts import TagConcepts
from orchestrator.data.dataset import BLOCK_ROWS, Caption

LETTERS = np.array(list("etaoinshrdlcumwfgypbvk"))


def vocabulary(size: int, random: np.random.Generator) -> list[str]:
    """Pseudo-words of two to seven letters."""
    words: dict[str, None] = {}
    while len(words) < size:
        words["".join(random.choice(LETTERS, random.integers(2, 8)))] = None
    return list(words)


def phrases(count: int, lengths: tuple[int, int], words: list[str], random: np.random.Generator) -> list[str]:
    """Texts of so many words, frequent ones often."""
    sizes = random.integers(*lengths, count)
    drawn = np.minimum(random.zipf(1.3, int(sizes.sum())) - 1, len(words) - 1)
    bounds = np.cumsum(sizes)
    return [" ".join(words[n] for n in part) for part in np.split(drawn, bounds[:-1])]


def entries(count: int, words: list[str], random: np.random.Generator) -> list[str]:
    """Different concepts of one to three words."""
    found: dict[str, None] = {}
    while len(found) < count:
        sizes = random.integers(1, 4, count)
        for size in sizes.tolist():
            found[" ".join(words[n] for n in random.integers(0, len(words), size))] = None
            if len(found) == count:
                break
    return list(found)


def measure(concepts: list[str], captions: list[str], matching: str) -> dict[str, float]:
    """Seconds to build, captions a second, concepts a caption."""
    started = time.process_time()
    judge = TagConcepts.model_validate({"concepts": concepts, "matching": matching}).open(None)  # type: ignore[arg-type]
    built, found, hits = time.process_time(), 0, 0.0
    for start in range(0, len(captions), BLOCK_ROWS):
        texts = captions[start : start + BLOCK_ROWS]
        block = Block(range(len(texts)), {"captions": [(Caption("original", "en", text),) for text in texts]})  # type: ignore[arg-type]
        verdict = judge(block)
        found, hits = found + len(verdict.columns["concepts"]), hits + verdict.counts["concepts found"]
    return {
        "build_s": built - started,
        "captions_per_s": found / (time.process_time() - built),
        "concepts_per_caption": hits / found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=200_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4_000, 500_000])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    words = vocabulary(50_000, random)
    captions = phrases(options.captions, (8, 13), words, random)
    print(f"{len(captions):,} captions of {np.mean([len(text) for text in captions]):.0f} characters\n")
    print("| concepts | matching | build, s | captions/s/core | concepts a caption |\n|---|---|---|---|---|")
    results = []
    for size in options.sizes:
        concepts = entries(size, words, random)
        for matching in ("metaclip", "words"):
            row = {"concepts": size, "matching": matching, **measure(concepts, captions, matching)}
            results.append(row)
            print(
                f"| {size:,} | {matching} | {row['build_s']:.1f} | {row['captions_per_s']:,.0f} "
                f"| {row['concepts_per_caption']:.1f} |"
            )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
