"""The login page gives the token's cookie once, to whoever knows its path and is this user."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request

import pytest

from orchestrator.engine.ui import COOKIE, LoginPage, is_mine

TOKEN = "t" * 64


class Kept(urllib.request.HTTPRedirectHandler):
    """Redirects are answers."""

    def redirect_request(self, *arguments: object) -> None:
        return None


def visit(url: str) -> tuple[int, str]:
    """(status, cookie)."""
    with pytest.raises(urllib.error.HTTPError) as answer:
        urllib.request.build_opener(Kept()).open(url, timeout=10)
    return answer.value.code, answer.value.headers.get("Set-Cookie", "")


def test_the_page_answers_once_and_only_at_its_path():
    page = LoginPage("http://127.0.0.1:8265", TOKEN)
    serving = threading.Thread(target=page.wait, args=(30,))
    serving.start()
    base = page.url.rpartition("/")[0]
    assert visit(f"{base}/")[0] == 404
    assert visit(f"{base}/guess") == (404, "")
    status, cookie = visit(page.url)
    assert status == 302
    assert cookie == f"{COOKIE}={TOKEN}; Path=/; HttpOnly; SameSite=Strict"
    serving.join(10)
    assert not serving.is_alive()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(page.url, timeout=2)
    assert TOKEN not in page.url


def table(uid: int, client: int, server: int) -> str:
    """A row of the system's table of connections."""
    ends = f"0100007F:{client:04X} 0100007F:{server:04X}"
    return f"  sl  local remote\n   0: {ends} 01 00000000:00000000 00:00000000 00000000 {uid:5d} 0 123 1\n"


def test_only_this_users_connections_are_ours(tmp_path):
    (tmp_path / "tcp").write_text(table(os.getuid(), 40_000, 8000))
    assert is_mine(40_000, 8000, tmp_path)
    assert not is_mine(40_001, 8000, tmp_path)
    (tmp_path / "tcp").write_text(table(os.getuid() + 1, 40_000, 8000))
    assert not is_mine(40_000, 8000, tmp_path)
    assert is_mine(40_000, 8000, tmp_path / "no such system")
