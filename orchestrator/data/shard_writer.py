"""Writing WebDataset shards whose bytes depend on their samples alone, and knowing where every member lies.

Headers hold a name and a size, and nothing of this machine or moment. Members of a sample stand together: the image as
it is stored, `txt` with the primary caption, `json` with all that is known of the sample, in the words that indexing
reads (index.py), so the shards stand for themselves.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.data.captions import UNKNOWN
from orchestrator.data.dataset import Caption


class Tar:
    """A shard in memory, member by member."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()

    def add(self, name: str, data: bytes) -> tuple[int, int]:
        """Append a member; offset and size of its data."""
        header = tarfile.TarInfo(name)
        header.size, header.mode, header.mtime = len(data), 0o644, 0
        self._buffer.write(header.tobuf(tarfile.USTAR_FORMAT))
        offset = self._buffer.tell()
        self._buffer.write(data)
        self._buffer.write(b"\0" * (-len(data) % tarfile.BLOCKSIZE))
        return offset, len(data)

    def close(self) -> bytes:
        """The shard."""
        self._buffer.write(b"\0" * (2 * tarfile.BLOCKSIZE))
        return self._buffer.getvalue()


def described(uid: str, captions: Sequence[Caption], facts: Mapping[str, Any]) -> bytes:
    """A sample's `json`: its uid, its further captions, and whatever else is known of it that is not null.

    Captions in the primary one's language stand by slot, all others by language and slot there (of several in one slot
    the first, of originals all).
    """
    primary, *others = captions
    own: dict[str, Any] = {}
    foreign: dict[str, dict[str, Any]] = {}
    for caption in others:
        if caption.slot != "original":
            slots = own if caption.lang == primary.lang else foreign.setdefault(caption.lang, {})
            slots.setdefault(caption.slot, caption.text)
        elif caption.lang != UNKNOWN:
            foreign.setdefault(caption.lang, {}).setdefault("original", []).append(caption.text)
    known = {name: value for name, value in facts.items() if value is not None}
    lang = {} if primary.lang == UNKNOWN else {"lang": primary.lang}
    record = {"uid": uid, **lang, **({"captions": own | foreign} if own or foreign else {}), **known}
    return json.dumps(record, ensure_ascii=False, sort_keys=True, default=str).encode()
