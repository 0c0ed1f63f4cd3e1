"""Captions in other languages: what locales are called, and the table beside the shards of a set.

A set with few samples has every language in their json, where indexing finds them (`captions: {de: ...}`). One that
draws the same concepts in many styles has `captions.parquet`: one row a concept and language, one row group a
language; the rows belong to samples by `concept`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.data.build.shards import file_sha256

NAME = "captions.parquet"
MODIFIERS = {"latin": "Latn", "shaw": "Shaw", "ijekavian": "ijekavsk", "ijekavianlatin": "Latn-ijekavsk"}
"""Of gettext locales, where BCP 47 spells them otherwise."""


@dataclass(frozen=True)
class Annotation:
    """What is said of one thing in one language."""

    name: str
    keywords: tuple[str, ...]


def language(locale: str) -> str:
    """A gettext locale (`pt_BR`, `sr@latin`) as a BCP 47 language tag (`pt-BR`, `sr-Latn`)."""
    base, _, modifier = locale.partition("@")
    return "-".join([base.replace("_", "-"), *([MODIFIERS.get(modifier, modifier)] if modifier else [])])


def write_captions(
    path: Path, concepts: Mapping[str, str], locales: Mapping[str, Mapping[str, Annotation]]
) -> dict[str, int]:
    """Write the table, rows by language, then concept; returns rows per language, where there are any.

    `concepts`: what `locales` are keyed by -> concept id.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        {"concept": pa.string(), "lang": pa.string(), "name": pa.string(), "keywords": pa.list_(pa.string())}
    )
    rows_of = {}
    with pq.ParquetWriter(path, schema, compression="zstd", compression_level=12) as writer:
        for lang, texts in locales.items():
            rows = [
                {"concept": concept, "lang": lang, "name": texts[key].name, "keywords": list(texts[key].keywords)}
                for concept, key in sorted((concept, key) for key, concept in concepts.items())
                if key in texts
            ]
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows_of[lang] = len(rows)
    return rows_of


def facts(path: Path, rows_of: Mapping[str, int]) -> dict[str, Any]:
    """`languages` and `captions` of `set.json`."""
    table = {
        "name": path.name,
        "rows": sum(rows_of.values()),
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
    }
    return {"languages": dict(rows_of), "captions": table}
