"""Emoji in several drawing styles, with CLDR's names and keywords in many languages.

`emoji` is the sample set that ships with the product: the concepts that all three of its styles draw, skin tones
left out. `emoji-all` is everything drawn under a licence that asks for attribution at most (OpenMoji and EmojiOne
v1 ask for more: they are share-alike).

English captions are in the samples, every language in `captions.parquet`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.data.build import Builder, captions, cldr
from orchestrator.data.build.archives import Archive, members
from orchestrator.data.build.icons import IconSet, rasterise, to_webp
from orchestrator.data.build.notice import notice
from orchestrator.data.build.shards import shuffled, to_json, write_shards

IMAGE_SIZE = 64
"""Side in pixels."""
SEED = 0
"""Of the order of samples."""
LANGUAGES = ("ar", "de", "en", "es", "fr", "hi", "it", "ja", "ko", "pl", "pt", "sw", "tr", "uk", "zh")
"""Of the sample set."""
CHANGES = (
    f"drawings rasterised to {IMAGE_SIZE}x{IMAGE_SIZE} pixels and stored as lossless WebP; names, keywords and "
    "categories joined to them, others left out."
)


def _iconify(style: str, version: str, sha256: str, licence: str, author: str, url: str) -> Archive:
    return Archive("npm", f"@iconify-json/{style}", version, sha256, licence, author, url)


_GOOGLE = ("Apache-2.0", "Google Inc", "https://github.com/googlefonts/noto-emoji")
_MICROSOFT = ("MIT", "Microsoft Corporation", "https://github.com/microsoft/fluentui-emoji")
_EMOJI_ONE = ("CC-BY-4.0", "Emoji One", "https://github.com/EmojiTwo/emojitwo")
_UNICODE = ("Unicode-3.0", "2004-2026 Unicode, Inc.", "https://cldr.unicode.org")

STYLES: dict[str, Archive] = {
    style: _iconify(style, version, sha256, *rights)
    for style, version, sha256, rights in (
        ("noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad", _GOOGLE),
        ("noto-v1", "1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37", _GOOGLE),
        ("fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175", _MICROSOFT),
        ("fluent-emoji", "1.2.7", "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b", _MICROSOFT),
        (
            "fluent-emoji-high-contrast",
            "1.2.6",
            "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0",
            _MICROSOFT,
        ),
        (
            "twemoji",
            "1.2.5",
            "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
            ("CC-BY-4.0", "Twitter, Inc and other contributors", "https://github.com/jdecked/twemoji"),
        ),
        ("emojione", "1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e", _EMOJI_ONE),
        ("emojione-monotone", "1.2.1", "40b90004bafb406b59266155ef9b7e1dd67bf2947fc8db8d07388776f4d0d04e", _EMOJI_ONE),
        (
            "fxemoji",
            "1.2.2",
            "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
            ("Apache-2.0", "Mozilla", "https://github.com/mozilla/fxemoji"),
        ),
        (
            "streamline-emojis",
            "1.2.4",
            "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
            ("CC-BY-4.0", "Streamline", "https://github.com/webalys-hq/streamline-vectors"),
        ),
    )
}
SAMPLE_STYLES = ("noto", "noto-v1", "fluent-emoji-flat")
"""Of the sample set."""
TEXTS: dict[str, Archive] = {
    "annotations": Archive(
        "npm",
        "cldr-annotations-full",
        "48.2.0",
        "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
        *_UNICODE,
    ),
    "annotations-derived": Archive(
        "npm",
        "cldr-annotations-derived-full",
        "48.2.0",
        "4be946ff5815f806ec78b50363d577a769f2fbfb90c6380a44e161a92436996e",
        *_UNICODE,
    ),
    "categories": Archive(
        "npm",
        "emojibase-data",
        "17.0.0",
        "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
        "MIT",
        "2017-2019 Miles Johnson",
        "https://github.com/milesj/emojibase",
    ),
}


@dataclass(frozen=True)
class Drawing:
    """One picture to be made: an icon of a style, and the character sequence that it shows."""

    style: str
    icon: str
    char: str


def drawings(icon_sets: Iterable[IconSet], names: Mapping[str, str]) -> list[Drawing]:
    """All icons of all sets that show one of `names` (character sequence -> English name)."""
    return [
        Drawing(icons.style, icon, char) for icons in icon_sets for icon, char in sorted(icons.match(names).items())
    ]


def in_every_style(found: Sequence[Drawing]) -> list[Drawing]:
    """The drawings of what each of the styles draws, skin tones left out."""
    styles: dict[str, set[str]] = {}
    for drawing in found:
        styles.setdefault(drawing.style, set()).add(drawing.char)
    shared = {char for char in set.intersection(*styles.values()) if not cldr.has_skin_tone(char)}
    return [drawing for drawing in found if drawing.char in shared]


def categories(groups: Mapping[str, Any], emoji: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """Character sequence -> (category, subcategory) of Unicode's emoji list, skin tones included; from Emojibase."""
    labels = {}
    for entry in emoji:
        for variant in (entry, *entry.get("skins", ())):
            if "group" in variant and "subgroup" in variant:
                pair = groups["groups"][str(variant["group"])], groups["subgroups"][str(variant["subgroup"])]
                labels[cldr.from_hex(variant["hexcode"])] = pair
    return labels


def read_categories(file: Path) -> dict[str, tuple[str, str]]:
    """`categories` of the package."""
    found = {name: json.loads(data) for name, data in members(file, r"package/(en/data|meta/groups)\.json")}
    return categories(found["package/meta/groups.json"], found["package/en/data.json"])


def write(
    styles: Sequence[str],
    choose: Callable[[Sequence[Drawing]], Sequence[Drawing]],
    languages: Collection[str] | None,
    prefix: str,
    largest: int,
    folder: Path,
    files: Mapping[str, Path],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Draw and write a set (`Builder.write`); the first five arguments tell the sets of this module apart."""
    locales = cldr.read(files["annotations"], files["annotations-derived"], languages)
    english = locales["en"]
    names = {char: annotation.name for char, annotation in english.items()}
    ids, labels = cldr.concept_ids(names), read_categories(files["categories"])
    sets = {style: IconSet.read(style, files[style]) for style in styles}
    chosen = {f"{d.style}/{d.icon}": d for d in choose(drawings(sets.values(), names))}
    samples, kept = [], []
    for number, key in enumerate(shuffled(chosen, SEED)):
        if number % 1000 == 0:
            say(f"{prefix}: {number:,} of {len(chosen):,} drawn")
        drawing = chosen[key]
        image = rasterise(sets[drawing.style].svg(drawing.icon, IMAGE_SIZE))
        if image.getbbox() is None:
            continue
        kept.append(drawing)
        samples.append(_sample(drawing, to_webp(image), english[drawing.char], ids, labels))
    shards = write_shards(folder, prefix, samples, len(samples), largest)
    concepts = {drawing.char: ids[drawing.char] for drawing in kept}
    table = folder / captions.NAME
    rows_of = captions.write_captions(table, concepts, locales)
    archives = {**{style: STYLES[style] for style in styles}, **TEXTS}
    (folder / "NOTICE").write_text(notice(prefix, archives.values(), CHANGES), encoding="utf-8")
    return {
        "image_size": IMAGE_SIZE,
        "samples": len(samples),
        "dropped": {"blank": len(chosen) - len(kept)},
        "concepts": len(concepts),
        "styles": dict(sorted(Counter(drawing.style for drawing in kept).items())),
        "categories": len({labels.get(char, OTHER)[0] for char in concepts}),
        "subcategories": len({labels.get(char, OTHER)[1] for char in concepts}),
        "shards": shards,
        **captions.facts(table, rows_of),
    }


OTHER = ("other", "other")
"""Category and subcategory of what Unicode's emoji list does not have."""


def _sample(
    drawing: Drawing,
    image: bytes,
    english: captions.Annotation,
    ids: Mapping[str, str],
    labels: Mapping[str, tuple[str, str]],
) -> dict[str, bytes]:
    archive = STYLES[drawing.style]
    category, subcategory = labels.get(drawing.char, OTHER)
    record = {
        "concept": ids[drawing.char],
        "char": drawing.char,
        "style": drawing.style,
        "category": category,
        "subcategory": subcategory,
        "captions": {"name": english.name, "keywords": english.keywords},
        "source": {
            "package": archive.package,
            "version": archive.version,
            "icon": drawing.icon,
            "licence": archive.licence,
        },
        "sha256": hashlib.sha256(image).hexdigest(),
    }
    return {"webp": image, "txt": english.name.encode(), "json": to_json(record)}


EMOJI = Builder(
    name="emoji",
    description="Emoji that Noto, Noto v1 and Fluent Flat all draw, without skin tones; names in 15 languages.",
    licence="Apache-2.0 AND MIT AND Unicode-3.0",
    archives={**{style: STYLES[style] for style in SAMPLE_STYLES}, **TEXTS},
    write=partial(write, SAMPLE_STYLES, in_every_style, LANGUAGES, "emoji", 1200),
)
EMOJI_ALL = Builder(
    name="emoji-all",
    description="Emoji in ten drawing styles, skin tones included; names and keywords in every language of CLDR.",
    licence="Apache-2.0 AND MIT AND CC-BY-4.0 AND Unicode-3.0",
    archives={**STYLES, **TEXTS},
    write=partial(write, tuple(STYLES), list, None, "emoji-all", 2048),
)
