"""Artifacts on disk or S3: attempts, create-once manifests, digests.

Layout under a root (local path or `s3://bucket/prefix`):

    <kind>/<fingerprint>/attempts/<attempt>/...     many may be written, each by one writer
    <kind>/<fingerprint>/manifest.json              created once (create if absent): names the winning attempt

The manifest is the truth. No manifest, no artifact; whatever else lies there is somebody's unfinished work. `content_digest`
covers the declared files only (name, size, SHA-256), so two right runs have equal digests; timings and hosts are in the manifest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.io.storage import Storage


@dataclass(frozen=True)
class File:
    """One file of an artifact: size in bytes, SHA-256 in hex, and whether it counts for the content digest."""

    size: int
    sha256: str
    declared: bool = True


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


@dataclass(frozen=True)
class Handle:
    """A finished artifact in a store: its manifest and access to its files."""

    store: Store
    manifest: Manifest
    output: str = "default"

    def read(self, name: str) -> bytes:
        """The bytes of one file, checked against its SHA-256; KeyError if the manifest has no such file."""
        raise NotImplementedError

    def local(self, name: str) -> Path:
        """A local path of one file: in place on a local store, else a verified copy in the machine's cache."""
        raise NotImplementedError


@dataclass(frozen=True)
class Store:
    """Artifacts, leases, work places and runs under one root."""

    storage: Storage
    url: str
    _cache: dict[str, Manifest] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, url: str) -> Store:
        """Open a root given as a local path, `s3://bucket/prefix` or `memory://name`."""
        raise NotImplementedError

    def find(self, kind: str, fingerprint: str) -> Manifest | None:
        """The manifest, or None if the artifact is not finished."""
        raise NotImplementedError

    def handle(self, kind: str, fingerprint: str, output: str = "default") -> Handle:
        """A finished artifact; OrchError if it is not there."""
        raise NotImplementedError

    def publish(self, manifest: Manifest, directory: Path) -> Manifest:
        """Upload `directory` as the attempt's files, then create the manifest; the one already there wins, and is returned."""
        raise NotImplementedError

    def manifests(self, kind: str | None = None) -> Iterator[Manifest]:
        """All finished artifacts, newest last."""
        raise NotImplementedError
