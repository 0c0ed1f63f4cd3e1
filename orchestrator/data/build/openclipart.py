"""Open Clip Art 0.18: 8,121 drawings as strangers uploaded them, from its Debian packages. Dirty on purpose.

Nothing is mended, since finding what is wrong is curation's work, and saying why. Pictures are the packages' own PNG
bytes, from 6 pixels to 623 million (decompression bombs). Links to another picture become copies of it, so there
are exact duplicates under other captions. Captions are the titles as they stand: file names, addresses, "card" 226
times, or nothing at all. The folder is `category` and `subcategory`; tags are keywords, a description is the long
caption; `source.link` says where a link led.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from orchestrator.data.build import Builder
from orchestrator.data.build.archives import Archive, unpack
from orchestrator.data.build.notice import notice
from orchestrator.data.build.processes import WORK
from orchestrator.data.build.shards import shuffled, to_json, write_shards

SEED = 0
"""Of the order of samples."""
LARGEST = 1024
"""Samples a shard."""
_RIGHTS = ("CC-PDDC AND GPL-2.0-or-later", "the authors at openclipart.org", "https://openclipart.org")
ARCHIVES = {
    "png": Archive(
        "debian",
        "openclipart-png",
        "1:0.18+dfsg-19",
        "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
        *_RIGHTS,
    ),
    "svg": Archive(
        "debian",
        "openclipart-svg",
        "1:0.18+dfsg-19",
        "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
        *_RIGHTS,
    ),
}
LICENCES = {
    "http://web.resource.org/cc/PublicDomain": "CC-PDDC",
    "http://creativecommons.org/licenses/publicdomain/": "CC-PDDC",
    "http://creativecommons.org/licenses/GPL/2.0/": "GPL-2.0-or-later",
}
"""As the drawings state it. Where they state none, the packages' does: CC-PDDC."""
CC = "{http://web.resource.org/cc/}"
DC = "{http://purl.org/dc/elements/1.1/}"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"


def metadata(svg: bytes) -> dict[str, Any]:
    """What a drawing says of itself (RDF, `cc:Work`): title, description, tags, language, licence; empty if nothing.

    ParseError if it is not XML.
    """
    work = ElementTree.fromstring(svg).find(f".//{CC}Work")
    if work is None:
        return {"title": "", "description": "", "tags": [], "language": "", "licence": ""}
    licence = work.find(f"{CC}license")
    return {
        "title": _text(work.find(f"{DC}title")),
        "description": _text(work.find(f"{DC}description")),
        "tags": [tag for item in work.iterfind(f"{DC}subject/{RDF}Bag/{RDF}li") if (tag := _text(item))],
        "language": _text(work.find(f"{DC}language")),
        "licence": "" if licence is None else licence.get(f"{RDF}resource", ""),
    }


def _text(element: ElementTree.Element | None) -> str:
    return "" if element is None else "".join(element.itertext()).strip()


def sample(png: Path, svg: Path, name: str) -> dict[str, bytes]:
    """The sample of one picture: its path under the root of the pictures, and that of its drawing."""
    image, said = png.read_bytes(), metadata(svg.read_bytes())
    category, _, subcategory = name.rpartition("/")[0].partition("/")
    captions = {"long": said["description"], "keywords": said["tags"]}
    archive = ARCHIVES["png"]
    source = {
        "package": archive.package,
        "version": archive.version,
        "path": name,
        **({"link": os.path.normpath(Path(name).parent / png.readlink())} if png.is_symlink() else {}),
        "licence": LICENCES.get(said["licence"], "CC-PDDC"),
    }
    record = {
        "category": category,
        **({"subcategory": subcategory} if subcategory else {}),
        **({"lang": said["language"]} if said["language"] else {}),
        "captions": {slot: caption for slot, caption in captions.items() if caption},
        "source": source,
        "sha256": hashlib.sha256(image).hexdigest(),
    }
    return {"png": image, "txt": said["title"].encode(), "json": to_json(record)}


def samples(root: Path, names: list[str]) -> Iterator[dict[str, bytes]]:
    """The samples of pictures under a folder with `png/` and `svg/`, in the given order."""
    for name in names:
        yield sample(root / "png" / name, root / "svg" / Path(name).with_suffix(".svg"), name)


def write(folder: Path, files: Mapping[str, Path], say: Callable[[str], None]) -> dict[str, Any]:
    """Write the set (`Builder.write`)."""
    roots = {role: unpack(files[role], folder / WORK / role) / "usr/share/openclipart" for role in ARCHIVES}
    (roots["svg"] / "svg").rename(roots["png"] / "svg")
    root = roots["png"]
    names = [path.relative_to(root / "png").as_posix() for path in (root / "png").rglob("*.png")]
    say(f"openclipart: {len(names):,} pictures")
    shards = write_shards(folder, "openclipart", samples(root, shuffled(names, SEED)), len(names), LARGEST)
    changes = "links replaced by copies of what they point to; titles, descriptions and tags joined to the pictures."
    (folder / "NOTICE").write_text(notice("openclipart", ARCHIVES.values(), changes), encoding="utf-8")
    return {
        "samples": len(names),
        "links": sum((root / "png" / name).is_symlink() for name in names),
        "categories": len({name.partition("/")[0] for name in names}),
        "shards": shards,
    }


OPENCLIPART = Builder(
    name="openclipart",
    description="8,121 clip-art pictures with titles and tags as uploaded: duplicates, boilerplate, huge pictures.",
    licence="CC-PDDC AND GPL-2.0-or-later",
    archives=ARCHIVES,
    write=write,
)
