"""An HTTP proxy on loopback in front of a real S3 server, which spoils chosen requests. Standard library only.

`S3Proxy(endpoint)` counts requests; `proxy.choose(n, method, path)` says what happens to the n-th (from 1):

    503, 500    answered so, not forwarded
    drop        the connection is closed, not forwarded
    hang        not forwarded, never answered: the client has to give up
    half        half of its body is forwarded, then both connections break (one without a body is dropped)
    lost        forwarded, then the connection is closed without the answer: it was done, nobody knows
    cut         forwarded, the answer breaks off in the middle of its body (one without a body is `lost`)
    slow        forwarded after a second

A signature covers the Host header, which is forwarded as it came, so credentials stay with the client.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

KINDS = ("503", "500", "drop", "hang", "half", "lost", "cut", "slow")
SLOW_S = 1.0
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}

Choose = Callable[[int, str, str], str | None]


class S3Proxy:
    """The proxy; a context manager. `seen` lists (method, path), `faults` counts what was spoiled."""

    def __init__(self, endpoint: str) -> None:
        self.upstream = urlsplit(endpoint).netloc
        self.choose: Choose = lambda n, method, path: None
        self.seen: list[tuple[str, str]] = []
        self.faults = 0
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> S3Proxy:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def begin(self, choose: Choose | None = None) -> None:
        """Count from 1 again, and choose by this from now on."""
        with self._lock:
            self.seen, self.faults = [], 0
            self.choose = choose or (lambda n, method, path: None)

    def fault(self, method: str, path: str) -> str | None:
        """Note a request, and choose."""
        with self._lock:
            self.seen.append((method, path))
            fault = self.choose(len(self.seen), method, path)
            self.faults += fault is not None
            return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    proxy: S3Proxy

    def handle_error(self, request: object, client_address: object) -> None:
        """A client or a server that went away in the middle: the connection is closed, and that is all."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.upstream: http.client.HTTPConnection | None = None

    def finish(self) -> None:
        if self.upstream is not None:
            self.upstream.close()
        super().finish()

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.proxy.fault(self.command, self.path)
        if fault == "hang":
            self.rfile.read(1)  # until the client closes the connection
        if fault == "half" and body:
            with closing(http.client.HTTPConnection(self.server.proxy.upstream)) as upstream:
                self._begin(upstream, body[: len(body) // 2])
        if fault in ("drop", "hang", "half"):
            self.close_connection = True
            return
        if fault in ("503", "500"):
            self._answer(int(fault), {"Content-Type": "application/xml"}, b"<Error><Code>SlowDown</Code></Error>")
            return
        if fault == "slow":
            time.sleep(SLOW_S)
        status, headers, answer = self._forward(body)
        if fault == "lost" or (fault == "cut" and (len(answer) < 2 or self.command == "HEAD")):
            self.close_connection = True
            return
        self._answer(status, headers, answer, cut=fault == "cut")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        for fresh in (False, True):
            if self.upstream is None or fresh:
                self.upstream = http.client.HTTPConnection(self.server.proxy.upstream, timeout=30)
            try:
                self._begin(self.upstream, body)
                response = self.upstream.getresponse()
                answer = response.read()
                headers = {n: v for n, v in response.getheaders() if n.lower() not in HOP_BY_HOP}
                if self.command == "HEAD":
                    headers["Content-Length"] = response.getheader("Content-Length") or "0"
                return response.status, headers, answer
            except (http.client.HTTPException, ConnectionError):
                if fresh:
                    raise
        raise AssertionError("unreachable")

    def _begin(self, upstream: http.client.HTTPConnection, body: bytes) -> None:
        """Send the request's head and (a part of) its body."""
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            upstream.putheader(name, value)
        upstream.endheaders(body or None)

    def _answer(self, status: int, headers: dict[str, str], body: bytes, cut: bool = False) -> None:
        head = [f"HTTP/1.1 {status} {http.client.responses.get(status, '')}"]
        if "Content-Length" not in headers and status != 204:
            headers = {**headers, "Content-Length": str(len(body))}
        head += [f"{name}: {value}" for name, value in headers.items()]
        sent = body[: len(body) // 2] if cut else body
        if self.command == "HEAD":
            sent = b""
        self.wfile.write(("\r\n".join(head) + "\r\n\r\n").encode("latin-1") + sent)
        self.wfile.flush()
        self.close_connection = self.close_connection or cut

    def log_message(self, *arguments: object) -> None:
        """Nothing."""
