"""The NOTICE of a data set: what it is made from, what was changed, and the licence texts that must go along."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from orchestrator.data.build.archives import Archive

CC_BY = {"CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/legalcode"}
"""Licences that ask for a link to their text instead of the text."""


def notice(name: str, archives: Iterable[Archive], changes: str) -> str:
    """Attribution of every archive, the changes made, and each licence once."""
    archives = sorted(archives, key=lambda archive: archive.package)
    lines = [f"The data set {name!r} is derived from the works below.", "", f"Changes: {changes}", ""]
    for archive in archives:
        lines += [
            f"{archive.package} {archive.version}",
            f"    Copyright (c) {archive.author}",
            f"    {archive.url}",
            f"    Licence: {archive.licence}",
            "",
        ]
    for licence in sorted({archive.licence for archive in archives}):
        lines += [f"---- {licence} ----", "", licence_text(licence), ""]
    return "\n".join(lines)


def licence_text(licence: str) -> str:
    """The text of an SPDX licence, or where it is."""
    if licence in CC_BY:
        return CC_BY[licence]
    return (Path(__file__).parent / f"LICENSE-{licence}").read_text(encoding="utf-8").strip("\n")
