"""Clients that let the server wait: none of them keeps it from the others, and its log stays small."""

import asyncio
import contextlib
import json
import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from pipeline.serve.connections import Config, Repeated, Server
from pipeline.serve.limits import Limits

from .conftest import Server as Served

JSON = {"Content-Type": "application/json"}
SHORT = {"model": "dpo", "prompt": "x", "max_tokens": 1}
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


async def answering(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads a body and gives it back; /endless sends for ever, /unread does not look at the body."""
    if scope["type"] != "http":
        return
    body, more = b"", scope["path"] not in ("/endless", "/unread")
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        body, more = body + event["body"], event["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while scope["path"] == "/endless":
        await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def small() -> Iterator[int]:
    """The port of a server in this process with low limits."""
    listening = socket.create_server(("127.0.0.1", 0))
    limits = Limits(connections=8, head_seconds=0.5, stall_seconds=0.5)
    server = Server(Config(answering, limits))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    until(lambda: server.started)
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join(60)
        assert not thread.is_alive()


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def closed(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    connection.settimeout(60)
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            found += part
    return found


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Y: "])
def test_a_head_that_does_not_come(small: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", small)) as connection:
        connection.sendall(sent)
        assert b"408" in closed(connection)


def test_a_head_that_drips(small: int) -> None:
    with socket.create_connection(("127.0.0.1", small)) as connection, contextlib.suppress(OSError):
        deadline = time.monotonic() + 60
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        while time.monotonic() < deadline:
            connection.sendall(b"x")
            time.sleep(0.02)
        pytest.fail("it may drip for ever")


def test_a_second_head_that_does_not_come(small: int) -> None:
    with socket.create_connection(("127.0.0.1", small)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HT")
        found = closed(connection)
        assert found.startswith(b"HTTP/1.1 200")


def test_a_body_that_nobody_reads_and_that_drips(small: int) -> None:
    with socket.create_connection(("127.0.0.1", small)) as connection, contextlib.suppress(OSError):
        connection.sendall(b"POST /unread HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            connection.sendall(b"x")
            time.sleep(0.02)
        pytest.fail("it may drip for ever")


def test_an_answer_that_nobody_takes(small: int) -> None:
    """The client takes nothing, so the connection ends once the buffers are full."""
    with socket.create_connection(("127.0.0.1", small)) as connection:
        connection.sendall(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(2)
        assert len(closed(connection)) > 65_536


def test_the_newest_connections_are_kept(small: int) -> None:
    with contextlib.ExitStack() as stack:
        body = socket.create_connection(("127.0.0.1", small))
        stack.enter_context(body)
        body.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nx")
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", small))) for _ in range(40)]
        assert httpx.get(f"http://127.0.0.1:{small}/", timeout=60).status_code == 200
        assert closed(body) == b""  # it had waited longest
        assert sum(closed(connection) == b"" for connection in idle) >= 32


def test_not_http_at_all_has_an_error_in_json(small: int) -> None:
    for nonsense in (b"\x16\x03\x01 nonsense\r\n\r\n", b"GET /\r\n\r\n", b"\0" * 100_000):
        with socket.create_connection(("127.0.0.1", small)) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(nonsense)
            found = closed(connection)
            if found:
                assert found.startswith(b"HTTP/1.1 400")
                assert json.loads(found.split(b"\r\n\r\n", 1)[1])["error"]["type"] == "invalid_request_error"


def test_a_body_that_goes_wrong_in_the_middle_of_an_answer(small: int, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_connection(("127.0.0.1", small)) as connection:
        head = b"POST /unread HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head)
        time.sleep(0.1)
        connection.sendall(b"zz\r\n")
        assert closed(connection).startswith(b"HTTP/1.1 200")
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("sent", [b"", HEAD, HEAD + b"Content-Length: 900000\r\n\r\n{"], ids=["idle", "head", "body"])
def test_a_thousand_connections_that_wait(server: Served, sent: bytes) -> None:
    before, log = server.process.memory_info().rss, server.log.stat().st_size
    with contextlib.ExitStack() as stack:
        for _ in range(700):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
            connection.sendall(sent)
        start = time.process_time(), time.monotonic()
        for _ in range(5):
            assert httpx.post(f"{server.address}/v1/completions", json=SHORT, timeout=60).status_code == 200
        assert time.monotonic() - start[1] < 8  # less than the 10 s that a head or a body may take
        assert len(server.process.net_connections()) < 700
    assert server.process.memory_info().rss - before < 60e6
    assert server.log.stat().st_size - log < 20_000


def test_forty_slow_bodies_do_not_make_others_wait(server: Served) -> None:
    small, large = b'{"model": ', b" " * 300_000
    with contextlib.ExitStack() as stack:
        connections = []
        for number in range(40):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
            connection.sendall(HEAD + b"Content-Length: 900000\r\n\r\n" + (small if number % 2 else large))
            connections.append(connection)
        start = time.monotonic()
        for _ in range(3):
            assert httpx.post(f"{server.address}/v1/completions", json=SHORT, timeout=60).status_code == 200
        assert time.monotonic() - start < 8
        readable = select.select(connections, [], [], 0)[0]
        refused = [connection.recv(12) for connection in readable]  # the large ones beyond 16
        assert refused == [b"HTTP/1.1 429"] * 4


def test_a_message_is_logged_a_few_times_a_minute() -> None:
    log, shown = logging.getLogger("wordmill.test"), []
    handler = logging.Handler()
    handler.emit = lambda record: shown.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    log.addFilter(Repeated(3))
    for number in range(1000):
        log.warning("a thing of %d", number)
    log.warning("another")
    assert shown == ["a thing of 0", "a thing of 1", "a thing of 2 (no more of these in this minute)", "another"]
