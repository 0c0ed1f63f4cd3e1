"""`captions.parquet`: what a set's concepts are called in other languages, beside its shards.

One row a concept and language, one row group a language; the rows belong to samples by `concept`. The sample itself
carries its one primary caption.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.data.build.shards import file_sha256

NAME = "captions.parquet"


@dataclass(frozen=True)
class Annotation:
    """What is said of one thing in one language."""

    name: str
    keywords: tuple[str, ...] = ()
    description: str | None = None


def language(locale: str) -> str:
    """A gettext locale (`pt_BR`, `ca@valencia`) as a BCP 47 language tag (`pt-BR`, `ca-valencia`)."""
    return locale.replace("@latin", "-Latn").replace("@", "-").replace("_", "-")


def write_captions(
    path: Path, concepts: Mapping[str, str], locales: Mapping[str, Mapping[str, Annotation]]
) -> dict[str, int]:
    """Write the table, rows by language, then concept; returns rows per language, where there are any.

    `concepts`: what `locales` are keyed by -> concept id. Descriptions have a column where there are any.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"concept": pa.string(), "lang": pa.string(), "name": pa.string(), "keywords": pa.list_(pa.string())}
    if any(text.description is not None for texts in locales.values() for text in texts.values()):
        columns["description"] = pa.string()
    schema = pa.schema(columns)
    rows_of = {}
    with pq.ParquetWriter(path, schema, compression="zstd", compression_level=12) as writer:
        for lang, texts in locales.items():
            rows = [
                {"concept": concept, "lang": lang, **vars(texts[key])}
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
