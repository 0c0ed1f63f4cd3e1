"""Opens Ray's dashboard past its token: a page that answers once, sets the dashboard's cookie and goes on to it.

The dashboard takes its token from the cookie `ray-authentication-token`, and a browser's cookies belong to a host
whatever the port. So a one-shot server on the same loopback address may set it and redirect. The page's path is a
fresh secret; the token is in no URL, no log and no history. A browser's command line, where everybody on the machine
can read the path, is not enough: the page answers only to processes of this user, as far as the system tells whose a
connection is.
"""

from __future__ import annotations

import os
import secrets
import time
import webbrowser
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.engine import cluster

COOKIE = "ray-authentication-token"


def is_mine(client_port: int, server_port: int, tables: Path = Path("/proc/net")) -> bool:
    """Whether a loopback connection's other end belongs to this user; True where the system does not tell."""
    ends = (f":{client_port:04X}", f":{server_port:04X}")
    for table in (tables / "tcp", tables / "tcp6"):
        rows = [line.split() for line in table.read_text().splitlines()[1:]] if table.exists() else []
        for row in rows:
            if row[1].endswith(ends[0]) and row[2].endswith(ends[1]):
                return int(row[7]) == os.getuid()
    return not (tables / "tcp").exists()


class LoginPage:
    """The one-shot page. `url` is what to open; `wait` serves until it was visited."""

    visited = False

    def __init__(self, dashboard_url: str, token: str) -> None:
        path = f"/{secrets.token_urlsafe(24)}"
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mine = is_mine(self.client_address[1], page.port)
                if page.visited or not mine or not secrets.compare_digest(self.path, path):
                    self.send_error(404)
                    return
                page.visited = True
                self.send_response(302)
                self.send_header("Set-Cookie", f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict")
                self.send_header("Location", dashboard_url)
                self.send_header("Cache-Control", "no-store")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing: the path is a secret."""

        host = urlsplit(dashboard_url).hostname or "127.0.0.1"
        self._server = HTTPServer((host, 0), Handler)
        self._server.timeout = 0.5
        self.port = self._server.server_port
        self.url = f"http://{host}:{self.port}{path}"

    def wait(self, timeout_s: float) -> bool:
        """Serve until the page was visited or the time is over; whether it was visited."""
        deadline = time.monotonic() + timeout_s
        while not self.visited and time.monotonic() < deadline:
            self._server.handle_request()
        self._server.server_close()
        return self.visited


def open_ui(
    say: Callable[[str], None] = print, browser: Callable[[str], bool] = webbrowser.open, timeout_s: float = 300
) -> str:
    """Open the local cluster's dashboard in a browser, starting the cluster if there is none.

    The dashboard's address.
    """
    living = cluster.recorded() or cluster.start(say)
    cluster.keep_alive()
    page = LoginPage(living.dashboard_url, cluster.token_value(living))
    if not browser(page.url):
        say(f"open this address in a browser on this machine: {page.url}")
    page.wait(timeout_s)
    say(f"Ray dashboard: {living.dashboard_url} (up until `orch cluster down` or {living.idle_s / 60:g} idle minutes)")
    return living.dashboard_url
