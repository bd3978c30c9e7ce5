"""The proxy passes on what it is given, and breaks what it is told to break."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from chaos.proxy import Mood, Proxy


class Shelf(BaseHTTPRequestHandler):
    """Keeps what is put, by path."""

    kept: dict[str, bytes]

    def do_PUT(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) == length:
            self.kept[self.path] = body
            self._answer(200, self.headers["X-Mark"].encode())

    def do_GET(self) -> None:
        body = self.kept.get(self.path)
        self._answer(200 if body else 404, body or b"")

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def kept() -> dict[str, bytes]:
    return {}


@pytest.fixture
def proxy(kept: dict[str, bytes]) -> Iterator[Proxy]:
    class Own(Shelf):
        pass

    Own.kept = kept
    server = HTTPServer(("127.0.0.1", 0), Own)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    proxy = Proxy(server.server_address[1])
    yield proxy
    proxy.stop()
    server.shutdown()
    server.server_close()


def ask(
    proxy: Proxy, method: str, path: str, body: bytes = b""
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(proxy.uri.removeprefix("http://"), timeout=10)
    try:
        connection.request(method, path, body, {"X-Mark": "mark"})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_all_is_passed_on(proxy: Proxy, kept: dict[str, bytes]) -> None:
    path, body = "/a?b=c%20d", bytes(range(256)) * 4000
    assert ask(proxy, "PUT", path, body)[2] == b"mark"
    assert kept == {path: body}
    assert ask(proxy, "GET", path)[2] == body
    assert ask(proxy, "HEAD", path)[1]["Content-Length"] == str(len(body))
    assert ask(proxy, "GET", "/none")[0] == 404
    assert proxy.spoiled == 0


def test_it_refuses(proxy: Proxy, kept: dict[str, bytes]) -> None:
    with proxy.being(Mood(status=503, methods=frozenset({"PUT"}))):
        assert ask(proxy, "PUT", "/a", b"1234")[0] == 503
        assert ask(proxy, "GET", "/a")[0] == 404
    assert (kept, proxy.spoiled) == ({}, 1)
    assert ask(proxy, "PUT", "/a", b"1234")[0] == 200


@pytest.mark.parametrize(
    ("mood", "arrives"), [(Mood(cut_request=True), False), (Mood(cut_answer=True), True)]
)
def test_connections_break(proxy: Proxy, kept: dict[str, bytes], mood: Mood, arrives: bool) -> None:
    said = b""
    # A client may take a head that was cut off for a whole one, and its body for empty.
    with proxy.being(mood), contextlib.suppress(http.client.HTTPException, ConnectionError):
        said = ask(proxy, "PUT", "/a", b"1234" * 1000)[2]
    assert said != b"mark"
    assert ("/a" in kept) == arrives
