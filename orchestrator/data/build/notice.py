"""The NOTICE of a data set: what it is made from, what was changed, and the licence texts that must go along."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.data.build.archives import Archive

_CC = "https://creativecommons.org/licenses"
LINKED = {
    "CC-BY-2.0": f"{_CC}/by/2.0/legalcode",
    "CC-BY-3.0": f"{_CC}/by/3.0/legalcode",
    "CC-BY-4.0": f"{_CC}/by/4.0/legalcode",
    "CC-BY-NC-4.0": f"{_CC}/by-nc/4.0/legalcode",
    "CC-BY-NC-SA-4.0": f"{_CC}/by-nc-sa/4.0/legalcode",
    "CC-BY-SA-3.0": f"{_CC}/by-sa/3.0/legalcode",
    "CC-BY-SA-4.0": f"{_CC}/by-sa/4.0/legalcode",
    "CC-PDDC": f"{_CC}/publicdomain",
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/legalcode",
    "GPL-2.0-only": "https://www.gnu.org/licenses/gpl-2.0.txt",
    "GPL-2.0-or-later": "https://www.gnu.org/licenses/gpl-2.0.txt",
    "GPL-3.0": "https://www.gnu.org/licenses/gpl-3.0.txt",
    "GPL-3.0-only": "https://www.gnu.org/licenses/gpl-3.0.txt",
    "GPL-3.0-or-later": "https://www.gnu.org/licenses/gpl-3.0.txt",
    "MPL-2.0": "https://www.mozilla.org/MPL/2.0",
    "OFL-1.1": "https://openfontlicense.org/open-font-license-official-text",
    "Unlicense": "https://unlicense.org",
}
"""Licences whose text is long and has an address that lasts."""


@dataclass(frozen=True)
class Work:
    """One of the works in an archive that have authors and licences of their own."""

    title: str
    licence: str
    author: str
    url: str

    def __str__(self) -> str:
        return self.title


def notice(name: str, works: Iterable[Archive | Work], changes: str) -> str:
    """Attribution of every work or whole archive, the changes made, and each licence once."""
    works = sorted(works, key=str)
    lines = [f"The data set {name!r} is derived from the works below.", "", f"Changes: {changes}", ""]
    for work in works:
        lines += [
            f"{work}",
            f"    Copyright (c) {work.author}",
            f"    {work.url}",
            f"    Licence: {work.licence}",
            "",
        ]
    for licence in sorted({licence for work in works for licence in work.licence.split(" AND ")}):
        lines += [f"---- {licence} ----", "", licence_text(licence), ""]
    return "\n".join(lines)


def licence_text(licence: str) -> str:
    """The text of an SPDX licence, or where it is."""
    if licence in LINKED:
        return LINKED[licence]
    return (Path(__file__).parent / f"LICENSE-{licence}").read_text(encoding="utf-8").strip("\n")
