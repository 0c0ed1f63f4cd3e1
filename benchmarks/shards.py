"""The shards that all benchmarks read: real pictures with real captions, as .jpg/.txt pairs in WebDataset tars.

`drawn` draws the emoji of three icon sets (Noto, Fluent, Twemoji) at 288 pixels on white, as JPEG of quality 90, with
their English names from Unicode's CLDR; the icon sets come from npm, pinned by SHA-256. `builtin` takes the 64-pixel
drawings that ship with the product: no network, for a quick run at toy size. Building again does nothing.

    python -m benchmarks.shards --out build/shards
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from orchestrator.data.build import cldr, emoji
from orchestrator.data.build.archives import fetch
from orchestrator.data.build.icons import IconSet, rasterise
from orchestrator.data.build.shards import read_shards, shuffled, write_shards
from orchestrator.data.dataset import Dataset, Tables
from orchestrator.data.sets import shards as builtin_shards
from orchestrator.data.shards import Shards
from orchestrator.data.source import known, prepare
from orchestrator.io.storage import Storage
from orchestrator.store.artifacts import Store

STYLES = ("noto", "fluent-emoji", "twemoji")
PIXELS, QUALITY, SEED = 288, 90, 0
NUM_SHARDS = 8
"""open_clip_train wants at least one a worker."""
SOURCES = ("drawn", "builtin")


def build(out: Path, source: str = "drawn", limit: int | None = 4096, downloads: Path | None = None) -> list[Path]:
    """Write at most `limit` samples (None: all there are) as shards into `out`, unless they are there; their paths.

    `sizes.json`, which open_clip_train reads, has the number of samples of each. `downloads`: the folder of the icon
    sets' packages, `downloads` beside `out` by default.
    """
    wanted = {"source": source, "limit": limit, "format": 1}
    marker = out / "built.json"
    if not marker.is_file() or json.loads(marker.read_text()) != wanted:
        out.mkdir(parents=True, exist_ok=True)
        for old in (marker, *out.glob("*.tar")):
            old.unlink(missing_ok=True)
        samples = list(_drawn(limit, downloads or out.parent / "downloads") if source == "drawn" else _builtin(limit))
        written = write_shards(out, "bench", samples, len(samples), max(1, -(-len(samples) // NUM_SHARDS)))
        (out / "sizes.json").write_text(json.dumps({shard["name"]: shard["samples"] for shard in written}))
        marker.write_text(json.dumps(wanted))
    return sorted(out.glob("*.tar"))


def num_samples(out: Path) -> int:
    """How many samples the shards of a built folder hold."""
    return sum(json.loads((out / "sizes.json").read_text()).values())


def pattern(paths: list[Path]) -> str:
    """The shards as open_clip_train's --train-data takes them."""
    return (
        "::".join(map(str, paths))
        if len(paths) == 1
        else f"{paths[0].parent}/bench-{{00000..{len(paths) - 1:05d}}}.tar"
    )


def dataset(out: Path | str, work: Path) -> Dataset:
    """All samples of a built folder as our `Dataset`, its index kept in the store at `work`."""
    store = Store.open(str(work))
    prepare(str(out), store)
    found = known(str(out), store)
    assert found is not None
    folder = work / found.place
    columns = {name: {"file": f, "columns": _columns(folder / f)} for name, f in found.marker["columns"].items()}
    description = {
        "rows": found.marker["rows"],
        "selected": found.marker["rows"],
        "shards": found.marker["shards"],
        "index": "index.parquet",
        "columns": columns,
        "selection": None,
    }
    tables = Tables(description, lambda file: folder / str(file))
    names = [name for name, _ in found.marker["shards"]]
    return Dataset("bench", tables, Shards(Storage.open(found.url), "", names))


def _columns(file: Path) -> list[str]:
    import pyarrow.parquet as pq

    return pq.read_schema(file).names


def _drawn(limit: int | None, downloads: Path) -> Iterator[dict[str, bytes]]:
    texts = {role: fetch(archive, downloads) for role, archive in emoji.TEXTS.items() if role != "categories"}
    english = cldr.read(texts["annotations"], texts["annotations-derived"], ["en"])["en"]
    sets = {style: IconSet.read(style, fetch(emoji.STYLES[style], downloads)) for style in STYLES}
    names = {char: annotation.name for char, annotation in english.items()}
    found = {f"{d.style}/{d.icon}": d for d in emoji.drawings(sets.values(), names)}
    for key in shuffled(found, SEED)[:limit]:
        drawing = found[key]
        yield _sample(rasterise(sets[drawing.style].svg(drawing.icon, PIXELS)), names[drawing.char].encode())


def _builtin(limit: int | None) -> Iterator[dict[str, bytes]]:
    for number, sample in enumerate(read_shards(list(map(Path, builtin_shards("emoji"))))):
        if number == limit:
            return
        yield _sample(Image.open(io.BytesIO(sample["webp"])), sample["txt"])


def _sample(drawing: Image.Image, caption: bytes) -> dict[str, bytes]:
    picture = Image.new("RGBA", drawing.size, "white")
    picture.alpha_composite(drawing.convert("RGBA"))
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "JPEG", quality=QUALITY)
    return {"jpg": stream.getvalue(), "txt": caption}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--shards`, `--source` and `--limit`, as every benchmark has them."""
    parser.add_argument("--shards", type=Path, default=Path("build/shards"), help="built there if missing")
    parser.add_argument("--source", choices=SOURCES, default="drawn", help="what the shards hold")
    parser.add_argument("--limit", type=int, default=4096, help="samples at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--source", choices=SOURCES, default="drawn")
    parser.add_argument("--limit", type=int, default=4096, help="samples at most")
    parser.add_argument("--downloads", type=Path, help="folder of the icon sets' packages")
    options = parser.parse_args()
    paths = build(options.out, options.source, options.limit, options.downloads)
    size = sum(path.stat().st_size for path in paths)
    print(f"{num_samples(options.out):,} samples, {size / 1e6:.1f} MB in {len(paths)} shards: {options.out}")


if __name__ == "__main__":
    main()
