"""Data sets that ship with the product: shards, captions and `set.json`, one folder each.

They were made by `orchestrator.data.build` and are read like anybody's shards. Further sets are built outside the
package.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SETS: dict[str, Path] = {"emoji": Path(__file__).parent / "emoji"}
"""Built-in name -> folder."""


def info(name: str) -> dict[str, Any]:
    """The set's `set.json`: counts, licence, sources, shards, `content_digest`. KeyError if there is no such set."""
    return json.loads((SETS[name] / "set.json").read_text(encoding="utf-8"))


def shards(name: str) -> list[Path]:
    """The set's shards, in order. KeyError if there is no such set."""
    return [SETS[name] / shard["name"] for shard in info(name)["shards"]]


def captions(name: str) -> Path:
    """Parquet of concept, lang, name, keywords, in all languages. KeyError if there is no such set."""
    return SETS[name] / info(name)["captions"]["name"]
