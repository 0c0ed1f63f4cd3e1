"""Provenance: the commit with its changes, packages and machine; never a secret, never a file that nobody added."""

from __future__ import annotations

import json
import subprocess

import pytest

from orchestrator.store.provenance import (
    DIFF_BYTES,
    code,
    host,
    packages,
    provenance,
)


def git(folder, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "tracked.py").write_text("a = 1\n")
    git(folder, "add", "tracked.py")
    git(folder, "commit", "-qm", "first")
    return folder


def test_a_clean_checkout_is_its_commit(checkout):
    assert code(checkout) == {"commit": git(checkout, "rev-parse", "HEAD"), "dirty": False}


@pytest.mark.parametrize("staged", [False, True])
def test_changes_of_tracked_files_are_kept(checkout, staged):
    (checkout / "tracked.py").write_text("a = 2\n")
    if staged:
        git(checkout, "add", "tracked.py")
    facts = code(checkout)
    assert facts["dirty"] is True
    assert "+a = 2" in facts["diff"]
    assert facts["diff_truncated"] is False


def test_files_that_nobody_added_are_not_looked_at(checkout):
    (checkout / ".env").write_text("PRIVATE=abc\n")
    assert "diff" not in code(checkout)


def test_a_large_difference_is_cut_and_known_by_its_digest(checkout):
    digests = set()
    for last in "xy":
        (checkout / "tracked.py").write_text("a = 2\n" * 100_000 + last)
        facts = code(checkout)
        assert len(facts["diff"]) == DIFF_BYTES
        assert facts["diff_truncated"] is True
        digests.add(facts["diff_sha256"])
    assert len(digests) == 2


def test_a_folder_outside_of_git_or_not_tracked_has_no_commit(checkout, tmp_path):
    assert code(tmp_path) == {}
    installed = checkout / ".venv" / "package"
    installed.mkdir(parents=True)
    (installed / "x.py").write_text("")
    assert code(installed) == {}


def test_provenance_is_json_with_versions_and_machine(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-value")
    facts = provenance(["orch", "submit", "very-secret-value"])
    assert "very-secret-value" not in json.dumps(facts)
    assert facts["packages"]["obstore"] == packages(["obstore"])["obstore"]
    assert facts["host"] == host()
    assert facts["host"]["usable_cpus"] >= 1


def test_packages_that_are_not_installed_are_left_out():
    assert packages(["pydantic", "no-such-package"]).keys() == {"pydantic"}
