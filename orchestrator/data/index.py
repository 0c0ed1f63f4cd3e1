"""Indexing: what is in the tar shards, where, and whether it is usable, without decoding a pixel.

A sample is a run of neighbouring tar members that share a key (path up to the first dot of the file name; img2dataset,
webdataset). It needs an image (jpg, jpeg, png, webp) and a caption (`txt`, else the json's `caption`). `index_shard`
is a pure function of one shard, so shards can be indexed anywhere in any order; data/merge.py numbers equal pairs over
all of them and writes the tables.

- uid: first 16 bytes of SHA-256(SHA-256(image bytes) | SHA-256(primary caption, UTF-8) | count of equal pairs before
  it, 8 bytes little-endian). All parts have a fixed width, so different samples never spell the same bytes.
- sample digest: SHA-256 over every member in suffix order (suffix, NUL, SHA-256 of the bytes): what the json says
  counts too.
- content digest: SHA-256 over (uid | sample digest) in uid order: neither shard names nor sample order count.

By headers, for pools too large to read: captions and json are read; of everything else, images too, name and size
stand for the bytes (`stand_in`). The rest is the same. So the same shards have another identity.

Whatever is left out is counted with its reason. `INDEX_VERSION` (orchestrator/data) is raised when the same bytes give
another index.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.data.bad import BadSample, BadSamples
from orchestrator.data.captions import SLOTS, UNKNOWN
from orchestrator.data.location import By
from orchestrator.data.pictures import PictureTooLarge, open_picture
from orchestrator.data.tables import FORMATS, LABELS, schemas
from orchestrator.data.tar import AHEAD_BYTES, Damaged, Member, NotTar, Pieces, members
from orchestrator.io.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_SUFFIXES = {"jpg": "jpg", "jpeg": "jpg", "png": "png", "webp": "webp"}
TEXTS = ("txt", "json")
LANGUAGES = ("lang", "language", "LANGUAGE")
"""Where json states the captions' language (ours, img2dataset's users, LAION)."""
FAILURES = ("failed_to_download", "failed_to_resize")
"""What img2dataset's `status` says of a sample without an image."""
MAX_NAME = 1024
MAX_MEMBER = 256 << 20
"""Bytes of a member: it is held in memory."""
HEADER_BYTES = 8 << 10
"""Read ahead after an image that was jumped over: it mostly holds the texts that follow and the next header."""
TRUNCATED = "shard is truncated"
NO_TAR = "shard is not a tar archive"

_HOSTILE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff\\]|^/|^.:|(^|/)\.\.(/|$)")
_LANGUAGE = re.compile(r"([A-Za-z]{2,3})((?:[-_][A-Za-z0-9]{2,8})*)")


def sample_uid(image_sha256: bytes, caption_sha256: bytes, count: int) -> bytes:
    """16 bytes from the two digests (32 bytes each) and the number of equal pairs before this one."""
    return hashlib.sha256(image_sha256 + caption_sha256 + count.to_bytes(8, "little")).digest()[:16]


def stand_in(name: str, size: int) -> bytes:
    """What stands for the SHA-256 of a member that is not read: a digest of its name in the shard and its size."""
    return hashlib.sha256(f"by headers\0{name}\0{size}".encode()).digest()


def part_schema() -> pa.Schema:
    """One row a sample, as `index_shard` yields it: the final columns, and the digests that `merge` needs."""
    import pyarrow as pa

    parts = schemas()
    base = [f for f in parts["index"] if f.name not in ("shard", "image_digest")]
    digests = [pa.field(name, pa.binary(32)) for name in ("image_sha256", "caption_sha256", "sample_digest")]
    groups = [f for name in ("captions", "source", "sizes", "labels") for f in parts[name]]
    return pa.schema([*base, *digests, *groups])


def index_shard(storage: Storage, key: str, by: By = "content") -> pa.Table:
    """Index one tar shard: rows of `part_schema` in tar order. Its schema's metadata has, as JSON, what was `dropped`,
    and what was `read` of it: bytes, requests.
    """
    import pyarrow as pa

    info = storage.head(key)
    if info is None:
        raise FileNotFoundError(key)
    dropped = BadSamples()
    with Pieces(storage, key, info.size, AHEAD_BYTES if by == "content" else HEADER_BYTES) as pieces:
        rows = list(_rows(pieces, key, by, dropped))
    read = {"bytes": pieces.fetched, "requests": pieces.requests}
    metadata = {"dropped": json.dumps(dropped.as_json()), "read": json.dumps(read)}
    return pa.Table.from_pylist(rows, schema=part_schema().with_metadata(metadata))


class _Part(NamedTuple):
    """A member of a sample; no content where it is not read."""

    suffix: str
    member: Member
    content: bytes | None


def _rows(pieces: Pieces, key: str, by: By, dropped: BadSamples) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for name, parts in _samples(pieces, key, by, dropped):
        try:
            if name in seen:
                raise BadSample("key comes back later in the shard")
            seen.add(name)
            yield _row(name, parts)
        except BadSample as bad:
            dropped.add(bad.reason, f"{key}/{name}")


def _samples(pieces: Pieces, key: str, by: By, dropped: BadSamples) -> Iterator[tuple[str, list[_Part]]]:
    """Runs of members with one key."""
    name = ""
    parts: list[_Part] = []
    for member in _members(pieces, key, dropped):
        path = member.name.removeprefix("./")
        if reason := _refusal(member, path):
            dropped.add(reason, f"{key}/{path!a}"[:200])
            continue
        folder, slash, base = path.rpartition("/")
        stem, dot, suffix = base.partition(".")
        if not (stem and dot):  # a README, a hidden file: no sample's member (webdataset skips them too)
            continue
        if folder + slash + stem != name:
            if parts:
                yield name, parts
            name, parts = folder + slash + stem, []
        suffix = suffix.lower()
        wanted = member.size <= MAX_MEMBER and (by == "content" or suffix in TEXTS)
        content = pieces.read(member.offset, member.offset + member.size) if wanted else None
        parts.append(_Part(suffix, member, content))
    if parts and TRUNCATED in dropped.counts:  # nobody can tell whether it has members beyond the damage
        dropped.add("last sample before the damage", f"{key}/{name}")
    elif parts:
        yield name, parts


def _refusal(member: Member, path: str) -> str | None:
    """Why a member must not be used, or None. Nothing is unpacked, but keys travel on into tables and shards."""
    if len(path) > MAX_NAME or _HOSTILE.search(path):
        return "hostile member name"
    return None if member.regular else "not a regular file"


def _members(pieces: Pieces, key: str, dropped: BadSamples) -> Iterator[Member]:
    """Members of a shard up to where it is damaged, which is counted."""
    try:
        yield from members(pieces.read, pieces.size)
    except NotTar:
        dropped.add(NO_TAR, key)
    except Damaged:
        dropped.add(TRUNCATED, key)


def _row(name: str, parts: Sequence[_Part]) -> dict[str, Any]:
    """One sample's row; BadSample with the reason if it cannot be used."""
    found = {part.suffix: part for part in parts}
    if len(found) < len(parts):
        raise BadSample("two members with one suffix")
    if any(part.member.size > MAX_MEMBER for part in parts):
        raise BadSample("a member is too large")
    text, stated = (found[s].content if s in found else None for s in TEXTS)
    facts = _facts(stated)
    image = next((found[s] for s in IMAGE_SUFFIXES if s in found), None)
    if image is None:
        status = facts.get("status")
        raise BadSample(f"no image: {status}" if status in FAILURES else "no image")
    primary = _primary_caption(text, facts)
    digests = {part.suffix: _digest(name, part) for part in parts}
    caption_digest = hashlib.sha256(primary.encode()).digest()
    row: dict[str, Any] = {
        "uid": sample_uid(digests[image.suffix], caption_digest, 0),
        "image_sha256": digests[image.suffix],
        "caption_sha256": caption_digest,
        "sample_digest": hashlib.sha256(b"".join(s.encode() + b"\0" + digests[s] for s in sorted(digests))).digest(),
        "format": FORMATS.index(IMAGE_SUFFIXES[image.suffix]),
        "captions": _captions(primary, facts),
        "key": name,
        "source_uid": _text(facts.get("uid")),
    }
    row |= _sizes(image, facts)
    for column, part in (("image", image), ("text", found.get("txt")), ("json", found.get("json"))):
        row[f"{column}_offset"] = part.member.offset if part else 0
        row[f"{column}_bytes"] = part.member.size if part else 0
    return row | {label: _text(facts.get(label)) for label in LABELS}


def _digest(name: str, part: _Part) -> bytes:
    if part.content is None:
        return stand_in(f"{name}.{part.suffix}", part.member.size)
    return hashlib.sha256(part.content).digest()


def _facts(content: bytes | None) -> dict[str, Any]:
    try:
        facts = json.loads(content) if content is not None else {}
    except (ValueError, RecursionError):
        raise BadSample("json cannot be read") from None
    if not isinstance(facts, dict):
        raise BadSample("json cannot be read")
    return facts


def _primary_caption(text: bytes | None, facts: Mapping[str, Any]) -> str:
    try:
        caption = text.decode("utf-8") if text is not None else facts.get("caption")
        caption = "" if caption is None else caption
        if not isinstance(caption, str):
            raise BadSample("caption is not text")
        caption = caption.strip()
        caption.encode()  # json may spell half a surrogate pair
    except UnicodeError:
        raise BadSample("caption is not UTF-8") from None
    if not caption:
        raise BadSample("no caption")
    return caption


def _captions(primary: str, facts: Mapping[str, Any]) -> list[dict[str, str]]:
    """The primary caption, then what the json has under `captions`: by slot (keywords may be beside it), and by
    language, there again by slot or as original texts. None twice.
    """
    given = facts.get("captions")
    given = given if isinstance(given, dict) else {}
    lang = next((code for name in LANGUAGES if (code := _language(facts.get(name)))), UNKNOWN)
    texts = [(slot, lang, _joined(given.get(slot))) for slot in SLOTS[1:]]
    if "keywords" not in given:
        texts.append(("keywords", lang, _joined(facts.get("keywords"))))
    for name, value in given.items():
        if name not in SLOTS and (code := _language(name)):
            slots = value if isinstance(value, dict) else {}
            originals = slots.get("original") if slots else value
            texts += [("original", code, text) for text in (originals if isinstance(originals, list) else [originals])]
            texts += [(slot, code, _joined(slots.get(slot))) for slot in SLOTS[1:]]
    texts = [(slot, code, clean) for slot, code, text in texts if (clean := _cleaned(text))]
    if lang == UNKNOWN:  # one that is given again under its language
        lang = next((code for slot, code, text in texts if (slot, text) == ("original", primary)), UNKNOWN)
    found = dict.fromkeys([("original", lang, primary), *texts])
    return [{"slot": slot, "lang": code, "text": text} for slot, code, text in found]


def _joined(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _cleaned(text: Any) -> str:
    return text.strip().encode(errors="replace").decode() if isinstance(text, str) else ""


def _language(value: Any) -> str | None:
    """A language code as BCP 47 writes it (`en`, `pt-BR`; LAION has EN, CLDR pt_BR); None if it is none."""
    code = _LANGUAGE.fullmatch(value) if isinstance(value, str) else None
    return code[1].lower() + code[2].replace("_", "-") if code else None


def _text(value: Any) -> str | None:
    return None if value is None else str(value).encode(errors="replace").decode()


def _sizes(image: _Part, facts: Mapping[str, Any]) -> dict[str, int | None]:
    """Width and height of the stored image, and of the original that it was made of. What has not been read is as
    large as the json says (img2dataset): unknown, if it says nothing.
    """
    if image.content is None:
        if not image.member.size:
            raise BadSample("not an image")
        stated = [_pixels(facts.get(name)) for name in ("width", "height")]
    else:
        stated = list(_size(image.content))
    originals = {name: _pixels(facts.get(name)) for name in ("original_width", "original_height")}
    return {"width": stated[0], "height": stated[1], **originals}


def _pixels(value: Any) -> int | None:
    return value if type(value) is int and 0 < value < 1 << 31 else None


def _size(image: bytes) -> tuple[int, int]:
    """Width and height from the image's header."""
    try:
        with open_picture(image) as opened:
            return opened.size
    except MemoryError:
        raise
    except PictureTooLarge:
        raise BadSample("image is too large") from None
    except Exception:  # PIL's format plugins raise all sorts on bad bytes
        raise BadSample("not an image") from None
