"""Bytes by key: local disk, S3 and memory behind one small interface, a thin skin over obstore.

Keys are relative, `/`-separated, without empty segments. Every protocol above needs nothing but *create if absent*,
which all three offer. Retries happen here and nowhere else (s3.py says of what). Listings are sorted on the client
(S3 servers differ). obstore is not fork-safe: child processes use spawn or forkserver.
Credentials come from the environment, profile or role.

Absent objects raise FileNotFoundError; everything else that goes wrong is an OrchError that says the remedy (a
StoreAway where the store may come back by itself).
"""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, MemoryStore, S3Store

from orchestrator.errors import OrchError, StoreAway, UserError
from orchestrator.io.s3 import again, open_s3

PART_BYTES = 16 << 20
"""Part of a multipart upload; S3 allows 10,000 parts, so one file may have 160 GB."""


class _Memories(dict[str, MemoryStore]):
    """This process's memories by name. They stay here when Ray Train pickles the code of its function by value."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _Memories, ()


_MEMORIES = _Memories()
_BAD_KEY = re.compile(
    r"[\x00-\x1f\x7f]|#\d+$"
)  # LocalStore hides names that end in #<digits>: its own temporary files
_REFUSED = re.compile(r"status code: (4(?!08|09|29)\d\d [\w ]+)")
_EXPIRED = re.compile(r"ExpiredToken|InvalidToken|TokenRefreshRequired|RequestTimeTooSkewed")
_FULL = re.compile(r"os error (28|122|27)\b")  # ENOSPC, EDQUOT, EFBIG
_DENIED = re.compile(r"os error (13|1|30)\b")  # EACCES, EPERM, EROFS


@dataclass(frozen=True)
class Info:
    """A stored object: key, size in bytes, last modification in Unix seconds by the server's clock, entity tag."""

    key: str
    size: int
    modified: float
    etag: str | None


def check_key(key: str) -> str:
    """The key itself; ValueError unless it is relative, `/`-separated, without empty, `.` or `..` segments."""
    if not key or any(part in ("", ".", "..") for part in key.split("/")) or _BAD_KEY.search(key):
        raise ValueError(f"not a storage key: {key!r}")
    return key


class Storage:
    """One root. Picklable by its URL; opened anew in each process."""

    url: str

    def __init__(self, url: str, root: Path | None, backend: LocalStore | MemoryStore | S3Store | None) -> None:
        self.url = url
        self._root = root
        self._opened = backend

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Storage.open, (self.url,)

    @classmethod
    def open(cls, url: str) -> Storage:
        """Open a local path, `s3://bucket/prefix` or `memory://name` (the same name is the same memory in a process).

        A local root is created by the first write, never by looking. UserError for another scheme, OrchError where
        no credentials are found.
        """
        scheme, separator, rest = url.partition("://")
        if not separator or scheme == "file":
            root = Path(os.path.abspath(os.path.expanduser(rest if separator else url)))
            return cls(str(root), root, None)
        if "@" in rest and any(sign in rest.partition("/")[0] for sign in "@:"):  # a secret may have a /
            raise UserError(
                f"'{scheme}://***@{rest.rpartition('@')[2]}' names credentials",
                "leave them out: they come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role",
            )
        if scheme == "memory":
            return cls(url, None, _MEMORIES.setdefault(rest, MemoryStore()))
        if scheme == "s3" and rest.strip("/"):
            bucket, _, prefix = rest.strip("/").partition("/")
            return cls(f"s3://{rest.strip('/')}", None, open_s3(bucket, prefix))
        raise UserError(f"cannot open storage '{url}'", "write a local path, s3://bucket/prefix or memory://name")

    def get(self, key: str) -> bytes:
        """The object's bytes; FileNotFoundError if absent."""
        with self._errors(key):
            return obstore.get(self._reader(), check_key(key)).bytes().to_bytes()

    def get_ranges(self, key: str, starts: Sequence[int], ends: Sequence[int], coalesce: int = 1 << 20) -> list[bytes]:
        """Byte ranges [start, end) of one object, neighbours nearer than `coalesce` bytes read in one request.

        FileNotFoundError if absent, ValueError if a range reaches past the object's end.
        """
        spans = _merge(sorted((s, e) for s, e in zip(starts, ends, strict=True) if e > s), coalesce)
        if not spans:
            return [b""] * len(starts)
        # Merged here: merging in obstore panics where a range begins past the object's end.
        firsts, lasts = [int(first) for first, _ in spans], [int(last) for _, last in spans]
        try:
            with self._errors(key):
                parts = obstore.get_ranges(self._reader(), check_key(key), starts=firsts, ends=lasts, coalesce=0)
        except OrchError:
            info = self.head(key)  # each backend words "past the end" in its own way
            if info is not None and lasts[-1] > info.size:
                raise ValueError(f"{self.where(key)}: a range ends after the object's {info.size} bytes") from None
            raise
        if len(parts[-1]) != lasts[-1] - firsts[-1]:
            raise ValueError(f"{self.where(key)}: a range ends after the object's {firsts[-1] + len(parts[-1])} bytes")
        views = [memoryview(part) for part in parts]
        result = []
        for start, end in zip(starts, ends, strict=True):
            span = bisect_right(firsts, start) - 1
            result.append(bytes(views[span][start - firsts[span] : end - firsts[span]]) if end > start else b"")
        return result

    def put(self, key: str, data: bytes | Path) -> None:
        """Write or replace an object, atomically; a Path is streamed, in parts where it is large."""
        with self._errors(key, writing=True):
            again(obstore.put, self._writer(), check_key(key), data, chunk_size=PART_BYTES, max_concurrency=4)

    def create(self, key: str, data: bytes, durable: bool = False) -> bool:
        """Write the object if absent; False if it was there.

        With `durable`, a power cut leaves a local disk with the whole object or none, never with a torn one.

        After a lost answer and a retry, False may mean that our own first try won: callers to whom it matters put
        something unique into `data` and look.
        """
        with self._errors(key, writing=True):
            if durable and self._root is not None:
                return _create_on_disk(self._root / check_key(key), data)
            try:
                again(obstore.put, self._writer(), check_key(key), data, mode="create")
            except AlreadyExistsError:
                return False
            return True

    def download(self, key: str, path: Path) -> None:
        """Copy an object into a local file, atomically, in constant memory; FileNotFoundError if absent."""
        chunks = self.stream(key)
        first = next(chunks, b"")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".part-", delete=False) as file:
                try:
                    for chunk in chain([first], chunks):
                        file.write(chunk)
                    file.close()
                    os.replace(file.name, path)
                except BaseException:
                    os.unlink(file.name)
                    raise
        except FileNotFoundError:
            raise
        except OSError as error:  # of this machine's disk: the stream explains its own
            raise _explain(str(path), error, writing=True) from error

    def head(self, key: str) -> Info | None:
        """Facts of one object, or None."""
        try:
            with self._errors(key):
                return _info(obstore.head(self._reader(), check_key(key)))
        except FileNotFoundError:
            return None

    def children(self, prefix: str) -> list[str]:
        """Names of the "directories" directly under a prefix, sorted; S3 servers may still show emptied ones."""
        try:
            with self._errors(prefix):
                found = again(
                    obstore.list_with_delimiter, self._reader(), prefix=check_key(prefix) if prefix else None
                )
        except FileNotFoundError:
            return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])

    def list(self, prefix: str) -> Iterator[Info]:
        """All objects under a prefix (a whole path segment; "" for the root), sorted by key."""
        try:
            with self._errors(prefix):
                found = again(_listing, self._reader(), check_key(prefix) if prefix else None)
        except FileNotFoundError:
            found = []
        return iter(sorted(found, key=lambda info: info.key))

    def delete(self, key: str) -> None:
        """Remove an object; absent is fine."""
        try:
            with self._errors(key):
                again(obstore.delete, self._reader(), check_key(key))
        except FileNotFoundError:
            pass

    def delete_many(self, keys: Sequence[str]) -> None:
        """Remove objects, on S3 a thousand a request; absent ones are fine."""
        for start in range(0, len(keys), 1000):
            batch = [check_key(key) for key in keys[start : start + 1000]]
            try:
                with self._errors(batch[0]):
                    again(obstore.delete, self._reader(), batch)
            except FileNotFoundError:
                for key in batch:
                    self.delete(key)

    def remove_empty(self, prefix: str) -> None:
        """Remove directories at and below a prefix that hold nothing, on a local disk; there are none elsewhere."""
        if self._root is not None:
            for folder, _, _ in os.walk(self._root / check_key(prefix), topdown=False):
                with suppress(OSError):  # it holds something
                    os.rmdir(folder)

    def stream(self, key: str) -> Iterator[bytes]:
        """The object's bytes in pieces of some MB, in constant memory; FileNotFoundError if absent."""
        with self._errors(key):
            for chunk in obstore.get(self._reader(), check_key(key)).stream(min_chunk_size=4 << 20):
                yield bytes(chunk)

    def local(self, key: str) -> Path | None:
        """The path of an object on this machine's disk, for a local root; None otherwise."""
        return None if self._root is None else self._root / check_key(key)

    def where(self, key: str) -> str:
        """The object's full address, for messages."""
        return f"{self.url.rstrip('/')}/{key}" if key else self.url

    def _writer(self) -> LocalStore | MemoryStore | S3Store:
        if self._opened is None:
            self._opened = LocalStore(self._root, mkdir=True)
        return self._opened

    def _reader(self) -> LocalStore | MemoryStore | S3Store:
        if self._opened is None and self._root is not None and not self._root.is_dir():
            raise FileNotFoundError(self.url)
        return self._writer()

    @contextmanager
    def _errors(self, key: str, writing: bool = False) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if writing or "NoSuchBucket" in str(error):
                raise OrchError(
                    f"{self.where(key)}: there is no such bucket", "create the bucket, or correct the store's address"
                ) from None
            raise FileNotFoundError(f"{self.where(key)}: not found") from None
        except (BaseError, OSError) as error:
            raise _explain(self.where(key), error, writing) from error


def _explain(where: str, error: Exception, writing: bool) -> OrchError:
    """The error as a sentence with a way out."""
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None:
        text += f" (os error {error.errno})"
    if "NoSuchBucket" in text:
        return OrchError(f"{where}: there is no such bucket", "create the bucket, or correct the store's address")
    if _FULL.search(text):
        return OrchError(
            f"{where}: disk full", "free space or raise the quota, then submit again: finished work is kept"
        )
    if _DENIED.search(text):
        return OrchError(
            f"{where}: not allowed to {'write' if writing else 'read'} here", "check the path's owner and mode"
        )
    denied = isinstance(error, PermissionDeniedError | UnauthenticatedError)
    if denied or "403 Forbidden" in text or _EXPIRED.search(text):
        return OrchError(
            f"{where}: the server refused the credentials",
            "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or the role (may it have expired?), "
            "and the bucket's policy",
        )
    if "PermanentRedirect" in text or "301 Moved" in text:
        return OrchError(f"{where}: the bucket is in another region", "set AWS_REGION to the bucket's region")
    if refused := _REFUSED.search(text):
        return OrchError(
            f"{where}: the server refused the request: {refused[1]}{_code(text)}",
            "check the store's address and rights",
        )
    return StoreAway(
        f"{where}: storage failed after retries: {text.splitlines()[0]}",
        "check that the server is up (AWS_ENDPOINT_URL), then submit again: finished work is kept",
    )


def sync(path: Path) -> None:
    """Put a file's bytes or a directory's entries on the disk for good: they survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create_on_disk(path: Path, data: bytes) -> bool:
    """Give the name `path` to bytes that are on the disk for good already, unless something has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".part-{secrets.token_hex(8)}")
    try:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(part, path)
    except FileExistsError:
        return False
    finally:
        part.unlink(missing_ok=True)
    sync(path.parent)
    return True


def _code(text: str) -> str:
    """The S3 error's own name, where the answer has one."""
    found = re.search(r"<Code>(\w+)</Code>", text)
    return f" ({found[1]})" if found else ""


def _listing(backend: LocalStore | MemoryStore | S3Store, prefix: str | None) -> list[Info]:
    return [_info(meta) for page in obstore.list(backend, prefix=prefix, chunk_size=1000) for meta in page]


def _merge(ranges: list[tuple[int, int]], gap: int) -> list[tuple[int, int]]:
    """Sorted ranges, joined where at most `gap` bytes lie between them."""
    spans: list[tuple[int, int]] = []
    for start, end in ranges:
        if spans and start <= spans[-1][1] + gap:
            spans[-1] = (spans[-1][0], max(spans[-1][1], end))
        else:
            spans.append((start, end))
    return spans


def _info(meta: Any) -> Info:
    return Info(meta["path"], meta["size"], meta["last_modified"].timestamp(), meta["e_tag"])
