"""Fashion-MNIST: 70,000 grey photographs of clothes in ten classes, from its Debian package.

Labels are in the samples' json: `label` (0 to 9), `class`, `concept` (the class as an id) and `part` (train or
test, as published).
"""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.data.build import Builder
from orchestrator.data.build.archives import Archive, members
from orchestrator.data.build.cldr import slug
from orchestrator.data.build.notice import notice
from orchestrator.data.build.shards import shuffled, to_json, write_shards

if TYPE_CHECKING:
    import numpy as np

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
PARTS = {"train": "train", "test": "t10k"}
"""Part -> how its files begin."""
SEED = 0
"""Of the order of samples."""
ARCHIVE = Archive(
    "debian",
    "dataset-fashion-mnist",
    "0.0~git20200523.55506a9-1",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    "MIT",
    "2017 Zalando SE",
    "https://github.com/zalandoresearch/fashion-mnist",
)


def read_idx(data: bytes) -> np.ndarray:
    """An IDX file of unsigned bytes: 0, 0, type 8, number of axes, their lengths (big-endian uint32), the values.

    ValueError if it is something else.
    """
    import numpy as np

    if data[:3] != b"\0\0\x08":
        raise ValueError(f"not an IDX file of unsigned bytes: it begins with {data[:3]!r}")
    shape = np.frombuffer(data, ">u4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(tuple(map(int, shape)))


def caption(label: int) -> str:
    """The caption of a class."""
    return f"a photo of a {CLASSES[label].lower()}."


def write(folder: Path, files: Mapping[str, Path], say: Callable[[str], None]) -> dict[str, Any]:
    """Write the set (`Builder.write`): shards of the training part, then of the test part, keys running on."""
    tables = {
        Path(name).name: read_idx(gzip.decompress(data)) for name, data in members(files["images"], r".*-ubyte\.gz")
    }
    shards, counts, total = [], {}, 0
    for part, stem in PARTS.items():
        images, labels = tables[f"{stem}-images-idx3-ubyte.gz"], tables[f"{stem}-labels-idx1-ubyte.gz"]
        say(f"fashion-mnist: {len(images):,} images of the {part} part")
        samples = _samples(part, images, labels)
        shards += write_shards(folder, f"fashion-mnist-{part}", samples, len(images), 2048, first_key=total)
        counts[part] = len(images)
        total += len(images)
    changes = "images stored one by one as PNG, with captions made from the class names."
    (folder / "NOTICE").write_text(notice("fashion-mnist", [ARCHIVE], changes), encoding="utf-8")
    return {"image_size": 28, "samples": total, "parts": counts, "classes": list(CLASSES), "shards": shards}


def _samples(part: str, images: np.ndarray, labels: np.ndarray) -> Iterator[dict[str, bytes]]:
    for row in map(int, shuffled(map(str, range(len(images))), SEED)):
        image, label = _png(images[row]), int(labels[row])
        record = {
            "concept": slug(CLASSES[label]),
            "class": CLASSES[label],
            "label": label,
            "part": part,
            "source": {
                "package": ARCHIVE.package,
                "version": ARCHIVE.version,
                "row": row,
                "licence": ARCHIVE.licence,
            },
            "sha256": hashlib.sha256(image).hexdigest(),
        }
        yield {"png": image, "txt": caption(label).encode(), "json": to_json(record)}


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


FASHION_MNIST = Builder(
    name="fashion-mnist",
    description="70,000 grey photographs of clothes, 28 pixels, ten classes; captions from the class names.",
    licence="MIT",
    archives={"images": ARCHIVE},
    write=write,
)
