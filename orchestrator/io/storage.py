"""Bytes by key: local disk, S3 and memory behind one small interface, a thin skin over obstore.

Keys are relative, `/`-separated, without empty segments. Every protocol above needs nothing but *create if absent*,
which all three offer. Retries of throttling and time-outs happen here and nowhere else (`RETRY`). Listings are
sorted on the client (S3 servers differ). obstore is not fork-safe: child processes use spawn or forkserver.
Credentials come from the environment, profile or role.

Absent objects raise FileNotFoundError; everything else that goes wrong is an OrchError that says the remedy.
"""

from __future__ import annotations

import os
import re
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, MemoryStore, S3Store

from orchestrator.errors import OrchError, UserError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

RETRY: RetryConfig = {
    "max_retries": 10,
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=15), "base": 3},
    "retry_timeout": timedelta(minutes=3),
}
"""Throttling (429, 503), 5xx, dropped connections and time-outs: tried again this often, over some 10-20 s in all."""

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
        if scheme == "memory":
            return cls(url, None, _MEMORIES.setdefault(rest, MemoryStore()))
        if scheme == "s3" and rest.strip("/"):
            bucket, _, prefix = rest.strip("/").partition("/")
            return cls(f"s3://{rest.strip('/')}", None, _open_s3(bucket, prefix))
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
            obstore.put(self._writer(), check_key(key), data, chunk_size=PART_BYTES, max_concurrency=4)

    def create(self, key: str, data: bytes) -> bool:
        """Write the object if absent; False if it was there.

        After a lost answer and a retry, False may mean that our own first try won: callers to whom it matters put
        something unique into `data` and look.
        """
        with self._errors(key, writing=True):
            try:
                obstore.put(self._writer(), check_key(key), data, mode="create")
            except AlreadyExistsError:
                return False
            return True

    def download(self, key: str, path: Path) -> None:
        """Copy an object into a local file, atomically, in constant memory; FileNotFoundError if absent."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._errors(key), tempfile.NamedTemporaryFile(dir=path.parent, prefix=".part-", delete=False) as file:
            try:
                for chunk in obstore.get(self._reader(), check_key(key)).stream(min_chunk_size=4 << 20):
                    file.write(chunk)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise

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
                found = obstore.list_with_delimiter(self._reader(), prefix=check_key(prefix) if prefix else None)
        except FileNotFoundError:
            return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])

    def list(self, prefix: str) -> Iterator[Info]:
        """All objects under a prefix (a whole path segment; "" for the root), sorted by key."""
        try:
            with self._errors(prefix):
                pages = obstore.list(self._reader(), prefix=check_key(prefix) if prefix else None, chunk_size=1000)
                found = [_info(meta) for page in pages for meta in page]
        except FileNotFoundError:
            found = []
        return iter(sorted(found, key=lambda info: info.key))

    def delete(self, key: str) -> None:
        """Remove an object; absent is fine."""
        try:
            with self._errors(key):
                obstore.delete(self._reader(), check_key(key))
        except FileNotFoundError:
            pass

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
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or "403 Forbidden" in text:
        return OrchError(
            f"{where}: the server refused the credentials",
            "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or the role, and the bucket's policy",
        )
    if "PermanentRedirect" in text or "301 Moved" in text:
        return OrchError(f"{where}: the bucket is in another region", "set AWS_REGION to the bucket's region")
    return OrchError(
        f"{where}: storage failed after retries: {text.splitlines()[0]}",
        "check that the server is up (AWS_ENDPOINT_URL), then submit again: finished work is kept",
    )


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


def _open_s3(bucket: str, prefix: str) -> S3Store:
    """Path-style S3; endpoint, region and credentials as boto3 finds them (environment, profile, role)."""
    from boto3 import Session  # 0.3 s: only where S3 is used
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = Session()
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    settings: dict[str, Any] = {"region": session.region_name or "us-east-1"}
    if endpoint:
        settings["endpoint"] = endpoint
    if os.environ.get("AWS_SKIP_SIGNATURE", "").lower() == "true":
        settings["skip_signature"] = True
    else:
        try:
            settings["credential_provider"] = Boto3CredentialProvider(session)
        except ValueError:
            raise OrchError(
                f"s3://{bucket}: no AWS credentials found",
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; "
                "for public data AWS_SKIP_SIGNATURE=true",
            ) from None
    options: ClientConfig = {
        "allow_http": bool(endpoint and endpoint.startswith("http://")),
        "timeout": timedelta(minutes=15),  # of a whole request with its body: a large part on a slow line
        "read_timeout": timedelta(seconds=30),
        "connect_timeout": timedelta(seconds=5),
    }
    return S3Store(bucket, prefix=prefix or None, client_options=options, retry_config=RETRY, **settings)
