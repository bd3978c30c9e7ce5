"""An HTTP server in front of another one, which passes everything on until it is told otherwise."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: As an S3 server says it; to other clients any body will do.
SLOW_DOWN = (
    b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Reduce your request rate.'
    b"</Message></Error>"
)
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}


@dataclass(frozen=True)
class Mood:
    """What happens to a request. The default passes it on.

    Args:
        status: answered in the other server's place.
        delay: seconds that each request waits first.
        cut_request: half of what is uploaded arrives, then the connection breaks.
        cut_answer: the other server does what it is asked to, and half of its answer arrives.
        methods: of the requests that it holds for; none: all.
    """

    status: int = 0
    delay: float = 0.0
    cut_request: bool = False
    cut_answer: bool = False
    methods: frozenset[str] = frozenset()


class Proxy:
    """Listens on a port of its own as long as it lives.

    Args:
        port: the other server's, on loopback.
    """

    def __init__(self, port: int) -> None:
        self.mood = Mood()
        self.spoiled = 0  # requests that a mood held for, or that the other did not answer
        proxy = self

        class Handler(_Handler):
            owner = proxy
            upstream = port

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @contextmanager
    def being(self, mood: Mood) -> Iterator[None]:
        """In this mood meanwhile."""
        self.mood = mood
        try:
            yield
        finally:
            self.mood = Mood()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections break here: that is what it is for."""


@dataclass
class _Answer:
    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    length: str | None = None  # of a HEAD's absent body


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    owner: Proxy
    upstream: int

    def do_GET(self) -> None:
        mood = self.owner.mood
        if mood.methods and self.command not in mood.methods:
            mood = Mood()
        spoiled = mood != Mood()
        self.owner.spoiled += spoiled
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if mood.delay:
            time.sleep(mood.delay)
        if mood.status:
            self._answer(_Answer(mood.status, [("Retry-After", "1")], SLOW_DOWN))
            return
        try:
            answer = self._pass_on(body, cut=mood.cut_request)
        except (OSError, http.client.HTTPException):
            self.owner.spoiled += not spoiled
            self._break()
            return
        self._answer(answer, cut=mood.cut_answer)

    do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = do_GET  # noqa: N815

    def _pass_on(self, body: bytes, cut: bool) -> _Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=60)
        try:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.putheader("Connection", "close")
            connection.endheaders()
            if cut:
                connection.send(body[: len(body) // 2])
                raise ConnectionResetError
            connection.send(body)
            found = connection.getresponse()
            headers = [(k, v) for k, v in found.getheaders() if k.lower() not in HOP_BY_HOP]
            return _Answer(found.status, headers, found.read(), found.getheader("Content-Length"))
        finally:
            connection.close()

    def _answer(self, answer: _Answer, cut: bool = False) -> None:
        length = answer.length if self.command == "HEAD" else None
        if answer.status not in (204, 304):
            answer.headers.append(("Content-Length", length or str(len(answer.body))))
        lines = [f"HTTP/1.1 {answer.status} -", *(f"{k}: {v}" for k, v in answer.headers), "", ""]
        data = "\r\n".join(lines).encode("latin-1")
        data += b"" if self.command == "HEAD" else answer.body
        self.connection.sendall(data[: len(data) // 2] if cut else data)  # one packet if it fits
        if cut:
            self._break()

    def _break(self) -> None:
        """Reset the connection, as a server that dies does."""
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
