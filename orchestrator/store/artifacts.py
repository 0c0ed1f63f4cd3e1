"""Artifacts on disk or S3: attempts, create-once manifests, digests.

Layout under a root (local path or `s3://bucket/prefix`):

    <kind>/<fingerprint>/attempts/<attempt>/...     many may be written, each by one writer
    <kind>/<fingerprint>/manifest.json              created once (create if absent): names the winning attempt

The manifest is the truth. No manifest, no artifact; whatever else lies there is somebody's unfinished work.
`content_digest` covers the declared files only (name, size, SHA-256), so two right runs have equal digests; timings
and hosts are in the manifest. To publish is two steps, since the files lie where the stage ran and the lease may be
elsewhere: `upload`, then `commit`.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchError, StageError
from orchestrator.io.redact import redact
from orchestrator.io.storage import Storage, check_key, sync

FORMAT = 1
"""Version of the manifest's JSON; raised when an older reader would misread it."""

RESERVED = frozenset({"leases", "work", "runs", "sources", "kept", "mlartifacts"})
"""Names beside the kinds, directly under the root."""

READERS = 16
"""Requests under way at once where many manifests are read."""


class DamagedError(OrchError):
    """A manifest that cannot be read: cut off, or of a newer format."""


@dataclass(frozen=True)
class File:
    """One file of an artifact: size in bytes, SHA-256 in hex, and whether it counts for the content digest."""

    size: int
    sha256: str
    declared: bool = True


@dataclass(frozen=True)
class Cost:
    """Hours of reserved CPU cores and GPUs."""

    cpu_hours: float = 0.0
    gpu_hours: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.cpu_hours + other.cpu_hours, self.gpu_hours + other.gpu_hours)


@dataclass(frozen=True)
class Manifest:
    """What is known of a finished artifact. JSON on disk, field by field."""

    kind: str
    fingerprint: str
    attempt: str
    generation: int
    stage: str
    run: str
    payload: Mapping[str, Any]
    inputs: Mapping[str, Mapping[str, Any]]
    """By reference path: {artifact, kind, fingerprint, output, content_digest, name}."""
    files: Mapping[str, File]
    content_digest: str
    metrics: Mapping[str, float]
    summary: Mapping[str, Any]
    provenance: Mapping[str, Any]
    """Code commit, dirty flag and diff, source digests, package versions, host, threads, workers, device."""
    started: float
    finished: float
    """Unix seconds."""
    wall_s: float
    """Seconds of work over all attempts that counted."""

    @property
    def prefix(self) -> str:
        """Key prefix of the artifact's files."""
        return attempt_prefix(self.kind, self.fingerprint, self.attempt)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())

    @property
    def cost(self) -> Cost:
        """What the work took: the stage's whole budget (of all its workers) for as long as it worked."""
        hours = self.wall_s / 3600
        return Cost(self.provenance.get("cpus", 0) * hours, self.provenance.get("gpus", 0) * hours)

    def to_json(self) -> bytes:
        """Keys sorted, indented for people; StageError for a value that JSON cannot hold (a metric that is NaN)."""
        try:
            text = json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True, indent=2, allow_nan=False)
        except (TypeError, ValueError) as error:
            bad = [name for name, value in self.metrics.items() if not _finite(value)]
            raise StageError(
                f"stage '{self.stage}' returned what a manifest cannot hold: {error}",
                f"these metrics are not finite numbers: {', '.join(bad)}" if bad else "return plain JSON values",
            ) from None
        return redact(text).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Manifest:
        """The manifest written by `to_json`; OrchError naming `where` if it is damaged or of a newer format."""
        try:
            fields = json.loads(data)
            if fields.pop("format") > FORMAT:
                raise DamagedError(f"{where}: written by a newer version of orch", "upgrade orch to read this store")
            fields["files"] = {name: File(**file) for name, file in fields["files"].items()}
            code = fields["provenance"].get("code", {})
            if "diff" in code:  # the same for many artifacts: held once
                code["diff"] = sys.intern(code["diff"])
            return cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedError(
                f"{where}: not a readable manifest ({type(error).__name__}: {error})",
                "delete the folder it is in and submit again: the stage is computed anew",
            ) from None


@dataclass(frozen=True)
class Handle:
    """A finished artifact in a store: its manifest and access to its files."""

    store: Store
    manifest: Manifest
    output: str = "default"

    def read(self, name: str) -> bytes:
        """The bytes of one file, checked against its SHA-256; KeyError if the manifest has no such file."""
        file = self.manifest.files[name]
        key = f"{self.manifest.prefix}/{name}"
        try:
            data = self.store.storage.get(key)
        except FileNotFoundError:
            raise self._damaged(name, "is missing") from None
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise self._damaged(name, "does not have the content that was published")
        return data

    def local(self, name: str) -> Path:
        """A local path of one file: in place on a local store, else a verified copy in the machine's cache.

        Files of one artifact keep their relative places in the cache. KeyError if the manifest has no such file; in
        place only the size is checked (`read` checks the content).
        """
        file = self.manifest.files[name]
        key = f"{self.manifest.prefix}/{name}"
        path = self.store.storage.local(key)
        if path is None:
            path = cache_root() / "artifacts" / self.manifest.prefix / name
            if not path.is_file() or path.stat().st_size != file.size:
                try:
                    self.store.storage.download(key, path)
                except FileNotFoundError:
                    raise self._damaged(name, "is missing") from None
                if _hash(path, sync=False).sha256 != file.sha256:
                    path.unlink()
                    raise self._damaged(name, "does not have the content that was published")
        elif not path.is_file():
            raise self._damaged(name, "is missing")
        elif path.stat().st_size != file.size:
            raise self._damaged(name, f"has {path.stat().st_size} bytes instead of {file.size}")
        return path

    def _damaged(self, name: str, how: str) -> OrchError:
        where = self.store.storage.where
        return OrchError(
            f"{where(f'{self.manifest.prefix}/{name}')}: this file of stage '{self.manifest.stage}' {how}",
            f"delete {where(f'{self.manifest.kind}/{self.manifest.fingerprint}')} and submit again: "
            "the stage is computed anew",
        )


@dataclass(frozen=True)
class Store:
    """Artifacts, leases, work places and runs under one root."""

    storage: Storage
    url: str
    _cache: dict[str, Manifest] = field(default_factory=dict, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return Store.open, (self.url,)

    @classmethod
    def open(cls, url: str) -> Store:
        """Open a root given as a local path, `s3://bucket/prefix` or `memory://name`."""
        storage = Storage.open(url)
        return cls(storage, storage.url)

    def afresh(self) -> Store:
        """The same store without what was found before: an artifact may have been collected meanwhile."""
        return Store(self.storage, self.url)

    def find(self, kind: str, fingerprint: str) -> Manifest | None:
        """The manifest, or None if the artifact is not finished; one request, none once it was found."""
        key = f"{kind}/{fingerprint}/manifest.json"
        if key not in self._cache:
            try:
                data = self.storage.get(key)
            except FileNotFoundError:
                return None
            self._cache[key] = Manifest.from_json(data, self.storage.where(key))
        return self._cache[key]

    def handle(self, kind: str, fingerprint: str, output: str = "default") -> Handle:
        """A finished artifact; OrchError if it is not there."""
        manifest = self.find(kind, fingerprint)
        if manifest is None:
            raise OrchError(
                f"{self.storage.where(f'{kind}/{fingerprint}')}: no finished artifact",
                "submit the recipe that makes it, or point to the store that has it",
            )
        return Handle(self, manifest, output)

    def attempt_dir(self, kind: str, fingerprint: str, attempt: str) -> Path:
        """A new empty directory for an attempt's files: their final place on a local root, else a temporary one.

        A temporary one is the caller's to remove after the upload.
        """
        path = self.storage.local(attempt_prefix(kind, fingerprint, attempt))
        if path is None:
            return Path(tempfile.mkdtemp(prefix=f"orch-{kind}-"))
        path.mkdir(parents=True)
        return path

    def publish(
        self,
        manifest: Manifest,
        directory: Path,
        undeclared: Collection[str] = (),
        check: Callable[[], None] | None = None,
    ) -> Manifest:
        """Upload `directory` as the attempt's files, then create the manifest; one already there wins.

        `files` and `content_digest` of the manifest are filled in here.

        Args:
            manifest: everything else that is to be known.
            directory: the attempt's files, from `attempt_dir` or anywhere.
            undeclared: names of files that stay out of the content digest.
            check: called last before the manifest is created; raises LeaseLostError in a process that was overtaken.
        """
        files = self.upload(manifest.kind, manifest.fingerprint, manifest.attempt, directory, undeclared)
        return self.commit(replace(manifest, files=files, content_digest=content_digest(files)), check)

    def upload(
        self, kind: str, fingerprint: str, attempt: str, directory: Path, undeclared: Collection[str] = ()
    ) -> dict[str, File]:
        """First half of `publish`, done where the files are: bring them to the attempt's place, and say what they are.

        Files that lie in place already are not copied, so after a failure it may be called again to bring the rest.
        On a local disk all is there for good when it returns. Nothing is published yet.
        """
        files = describe(directory, undeclared)
        prefix = attempt_prefix(kind, fingerprint, attempt)
        place = self.storage.local(prefix)
        if place is None or place.resolve() != directory.resolve():
            there = {info.key.removeprefix(f"{prefix}/"): info.size for info in self.storage.list(prefix)}
            missing = [name for name, file in files.items() if there.get(name) != file.size]
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda n: self.storage.put(f"{prefix}/{n}", directory / n), missing))
        if place is not None:
            _settle(place, () if place.resolve() == directory.resolve() else files)
        return files

    def commit(self, manifest: Manifest, check: Callable[[], None] | None = None) -> Manifest:
        """Second half of `publish`, done where the lease is: create the manifest of files that `upload` brought."""
        data = manifest.to_json()
        if check is not None:
            check()
        key = f"{manifest.kind}/{manifest.fingerprint}/manifest.json"
        self.storage.create(key, data, durable=True)
        # Read back in every case: the one already there wins, and after a lost answer ours may be that one.
        return self._cache.setdefault(key, Manifest.from_json(self.storage.get(key), self.storage.where(key)))

    def manifests(self, kind: str | None = None) -> Iterator[Manifest]:
        """All finished artifacts, newest last; damaged manifests are passed over (`survey` names them)."""
        return iter(self.survey(kind)[0])

    def survey(self, kind: str | None = None) -> tuple[list[Manifest], dict[str, DamagedError]]:
        """All finished artifacts, newest last, and by fingerprint what is wrong with manifests that are damaged."""
        kinds = [kind] if kind else [k for k in self.storage.children("") if k not in RESERVED]
        with ThreadPoolExecutor(READERS) as pool:
            listed = pool.map(self.storage.children, kinds)
            places = [(k, fingerprint) for k, below in zip(kinds, listed) for fingerprint in below]
            found = list(pool.map(self._look, places))
        finished = [manifest for manifest in found if isinstance(manifest, Manifest)]
        damaged = {place[1]: error for place, error in zip(places, found) if isinstance(error, DamagedError)}
        return sorted(finished, key=lambda m: (m.finished, m.fingerprint)), damaged

    def _look(self, place: tuple[str, str]) -> Manifest | DamagedError | None:
        try:
            return self.find(*place)
        except DamagedError as error:
            return error


def new_attempt() -> str:
    """A name for an attempt that no other attempt has."""
    return secrets.token_hex(8)


def attempt_prefix(kind: str, fingerprint: str, attempt: str) -> str:
    """Key prefix of an attempt's files."""
    return f"{kind}/{fingerprint}/attempts/{attempt}"


def content_digest(files: Mapping[str, File]) -> str:
    """SHA-256 in hex over (name, size, SHA-256) of the declared files in name order: equal for equal results."""
    rows = [[name, file.size, file.sha256] for name, file in sorted(files.items()) if file.declared]
    return hashlib.sha256(json.dumps(rows, separators=(",", ":"), ensure_ascii=True).encode()).hexdigest()


def describe(directory: Path, undeclared: Collection[str] = ()) -> dict[str, File]:
    """Every file under a directory by its relative name, hashed, and on disk for good (fsync).

    StageError for links (an artifact owns its bytes), for names that no store can hold, and for undeclared names that
    are not there.
    """
    files = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink():
            raise StageError(f"{name}: a link in a stage's output", "write or hard-link the file itself")
        if path.is_dir():
            continue
        try:
            check_key(name)
        except ValueError as error:
            raise StageError(str(error), "rename the output file") from None
        files[name] = replace(_hash(path, sync=True), declared=name not in undeclared)
    if missing := sorted(set(undeclared) - set(files)):
        raise StageError(
            f"undeclared files that were not written: {', '.join(missing)}", "correct the stage's outcome"
        )
    return files


def cache_root() -> Path:
    """This machine's cache of remote files: $ORCH_CACHE, else ~/.cache/orch. May be deleted at any time."""
    return Path(os.environ.get("ORCH_CACHE") or Path.home() / ".cache" / "orch")


def _settle(place: Path, names: Iterable[str]) -> None:
    """Put these files and all directories' entries of an attempt on the disk for good."""
    for name in names:
        sync(place / name)
    for folder in [folder for folder in place.rglob("*") if folder.is_dir()]:
        sync(folder)
    for folder in (place, *place.parents[:3]):  # attempts, fingerprint, kind
        sync(folder)


def _hash(path: Path, sync: bool) -> File:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
        return File(os.fstat(file.fileno()).st_size, digest)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and value == value and abs(value) != float("inf")
