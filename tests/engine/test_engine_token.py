"""Whose token is used, and who can read it; where the local cluster listens."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from orchestrator.engine import cluster
from orchestrator.errors import OrchError
from orchestrator.io.home import private_file, private_folder


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "person"))
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "person" / "orch"))
    for name in ("RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN", "ORCH_CLUSTER_IP"):
        monkeypatch.delenv(name, raising=False)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_of_our_own_is_made_once_and_only_its_owner_can_read_it():
    path = cluster.token_path()
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    token = path.read_text()
    assert len(token) == 64
    assert cluster.token_path().read_text() == token
    assert cluster.authentication(path) == {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


def test_rays_own_token_is_used_and_closed_to_others():
    path = Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(parents=True)
    path.write_text("t" * 64)
    path.chmod(0o644)
    assert cluster.token_path() == path
    assert mode(path) == 0o600


def test_authentication_is_on_whatever_the_environment_says(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "something else")
    assert cluster.authentication("x")["RAY_AUTH_MODE"] == "token"


def test_the_cluster_listens_beyond_loopback_only_where_it_is_asked_for(monkeypatch):
    assert cluster.address_to_listen_on() == "127.0.0.1"
    monkeypatch.setenv("ORCH_CLUSTER_IP", "192.0.2.7")
    assert cluster.address_to_listen_on() == "192.0.2.7"


def test_a_folder_whose_name_can_be_guessed_must_be_ours_alone(tmp_path):
    assert mode(private_folder(tmp_path / "mine", owned=True)) == 0o700
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    for name in ("open", "link"):
        with pytest.raises(OrchError, match="not a folder of yours alone"):
            private_folder(tmp_path / name, owned=True)


def test_logs_are_made_for_their_owner_alone(tmp_path):
    with private_file(tmp_path / "log") as log:
        log.write(b"one\n")
    with private_file(tmp_path / "log") as log:
        log.write(b"two\n")
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    assert mode(tmp_path / "log") == 0o600
