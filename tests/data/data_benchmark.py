"""Folders of evaluation sets in CLIP_benchmark's layout, of one-coloured pictures, member by member."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Sample = Mapping[str, bytes]
"""By suffix the members of a sample."""


def colour(number: int) -> tuple[int, int, int]:
    return (number * 37 % 256, number * 101 % 256, number * 197 % 256)


def picture(number: int, kind: str = "png") -> dict[str, bytes]:
    buffer = io.BytesIO()
    options = {"lossless": True} if kind == "webp" else {}
    Image.new("RGB", (8, 8), colour(number)).save(buffer, kind.upper(), **options)
    return {kind: buffer.getvalue()}


def labelled(number: int, label: int, facts: Sequence[float] | None = None, kind: str = "png") -> Sample:
    """A picture of a colour, its class, and facts such as a region."""
    found = picture(number, kind) | {"cls": str(label).encode()}
    if facts is not None:
        buffer = io.BytesIO()
        np.save(buffer, np.array(facts))
        found["npy"] = buffer.getvalue()
    return found


def captioned(number: int, *captions: str) -> Sample:
    return picture(number) | {"txt": "\n".join(captions).encode()}


def write_set(
    folder: Path, samples: Sequence[Sample], texts: Mapping[str, str] = {}, shards: int = 2, split: str = "test"
) -> Path:
    """A set's folder; samples are dealt in runs, their keys are `s000`, `s001`, ... unless one has a `key`."""
    (folder / split).mkdir(parents=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / split / "nshards.txt").write_text(f"{shards}\n")
    each = -(-len(samples) // shards)
    for shard in range(shards):
        with tarfile.open(folder / split / f"{shard}.tar", "w") as tar:
            for number in range(shard * each, min((shard + 1) * each, len(samples))):
                members = dict(samples[number])
                key = members.pop("key", f"s{number:03d}".encode()).decode()
                for suffix, content in members.items():
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


def classes(numbers: Sequence[int], templates: Sequence[str] = ("{c}", "a view of {c}")) -> dict[str, str]:
    """Texts of a classification whose classes are colours."""
    return {
        "classnames.txt": "".join(f"c{number:03d}\n" for number in numbers),
        "zeroshot_classification_templates.txt": "".join(f"{template}\n" for template in templates),
    }


def write_cifar10(root: Path, name: str = "wds_cifar10_test", num_classes: int = 6, each: int = 3) -> Path:
    samples = [
        labelled(label, label, kind=("png", "webp")[n % 2]) for n in range(each) for label in range(num_classes)
    ]
    return write_set(root / name, samples, classes(range(num_classes)))


def write_retrieval(root: Path, name: str = "wds_flickr30k") -> Path:
    samples = [captioned(n, f"c{n:03d}", *[f"a view of c{n:03d}"] * (n % 3)) for n in range(5)]
    return write_set(root / name, samples, {"dataset_type.txt": "retrieval\n"})


def write_associations(root: Path, name: str = "winogavil", items: Sequence[Mapping] = ()) -> Path:
    samples = [picture(n) | {"key": f"picture-{n}".encode()} for n in range(12)]
    keys = [f"picture-{n}" for n in range(12)]
    items = items or [
        {"cue": "C003", "candidates": keys[:5], "associations": [keys[3]]},
        {"cue": "c007", "candidates": keys[:10], "associations": [keys[7], keys[1]]},
        {"cue": "c011", "candidates": keys, "associations": [keys[11]]},
    ]
    lines = "".join(json.dumps(item) + "\n" for item in items)
    return write_set(root / name, samples, {"dataset_type.txt": "associations\n", "associations.jsonl": lines})
