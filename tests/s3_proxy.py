"""A proxy before the S3 server that counts requests and makes some of them fail.

It forwards whatever it gets, Host header included, so signatures stay valid.
"""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Fault:
    """What happens to the next `times` requests whose "METHOD path?query" matches.

    `action`: a status to answer instead; "reset" drops the connection before the request is passed on, "lost"
    after the server has done it, "short" in the middle of the answer's body; "cut" ends the connection there properly;
    "silent" answers nothing for as long as the client waits.
    """

    pattern: str
    action: int | str
    times: int = 1
    code: str = "InternalError"


@dataclass
class Proxy:
    """The running proxy: its address, the requests it saw, the faults that are still to come, and how many bytes of
    contents it has sent.
    """

    endpoint: str
    requests: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, pattern: str, action: int | str, times: int = 1, code: str = "InternalError") -> None:
        """Make requests fail (see Fault)."""
        self.faults.append(Fault(pattern, action, times, code))

    def count(self, pattern: str = "") -> int:
        """How many requests so far match."""
        return sum(bool(re.search(pattern, line)) for line in self.requests)

    def kinds(self) -> Counter[str]:
        """Requests so far by what they ask."""
        return Counter("LIST" if "list-type=2" in line else line.split(" ")[0] for line in self.requests)

    def take(self, line: str) -> Fault | None:
        """Record a request; the fault that it meets, if any."""
        with self.lock:
            self.requests.append(line)
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, line):
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy
    upstream: str

    def handle_any(self) -> None:
        body = self._body()
        fault = self.proxy.take(f"{self.command} {self.path}")
        if fault is not None and isinstance(fault.action, int):
            answer = f"<Error><Code>{fault.code}</Code><Message>made to fail</Message></Error>".encode()
            self._answer(fault.action, {"Content-Type": "application/xml"}, answer)
            return
        if fault is not None and fault.action == "reset":
            self._reset()
            return
        if fault is not None and fault.action == "silent":
            self.connection.recv(1)  # until the client hangs up
            return
        status, headers, answer = self._forward(body)
        if fault is not None and fault.action == "lost":
            self._reset()
        elif fault is not None and fault.action == "short":
            self._answer(status, headers, answer, send=len(answer) // 2)
            self._reset()
        elif fault is not None and fault.action == "cut":
            self._answer(status, headers, answer, send=len(answer) // 2)
            self.close_connection = True
        else:
            self._answer(status, headers, answer)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        target = urlsplit(self.upstream)
        connection = http.client.HTTPConnection(target.hostname, target.port, timeout=30)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "transfer-encoding", "content-length", "expect"):
                    connection.putheader(name, value)
            if body or self.command in ("PUT", "POST"):
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body or None)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes, send: int | None = None) -> None:
        self.send_response_only(status)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            with self.proxy.lock:
                self.proxy.sent += len(body[:send])
            self.wfile.write(body[:send])
            self.wfile.flush()

    def _reset(self) -> None:
        """Drop the connection with a RST."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def finish(self) -> None:
        with suppress(OSError, ValueError):  # it may have been dropped
            super().finish()

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def proxied(upstream: str) -> Iterator[Proxy]:
    """A proxy before the server at this address, while inside."""
    handler: Any = type("Handler", (_Handler,), {"upstream": upstream})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    handler.proxy = Proxy(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield handler.proxy
    finally:
        server.shutdown()
        server.server_close()
