"""Damaged requests by the thousand: an answer that says what is wrong, or an end; no bug, no hang, bounded memory.

A mutation is a function of the seed and its number, so a failure can be run again alone. `FUZZ_REQUESTS` makes it
longer.
"""

import contextlib
import json
import os
import random
import re
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import httpx
import pytest

from tests.fuzz.mutations import Form, mutate

from .conftest import Server

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "600"))
TOGETHER = 40  # connections
BODIES = [
    {"model": "dpo", "prompt": "Once", "max_tokens": 2, "temperature": 0.5, "stop": ["x", "yz"], "seed": 3, "n": 2},
    {"model": "base", "prompt": ["a", [1, 2, 3]], "max_tokens": 1, "logprobs": 2, "top_p": 0.9, "top_k": -1},
    {"model": "dpo", "prompt": [256, 65], "max_tokens": 1, "stream": True, "stream_options": {"include_usage": True}},
    {"model": "dpo", "prompt": None, "max_tokens": 1, "min_p": 0.1, "repetition_penalty": 1.2, "logit_bias": {}},
    {"model": "dpo", "prompt": "é€😀", "max_tokens": 1, "presence_penalty": 1, "frequency_penalty": -1, "user": "u"},
]
LINES = [
    "GET / HTTP/1.1",
    "HEAD /v1/models HTTP/1.1",
    "GET /v1/models/dpo HTTP/1.1",
    "POST /v1/completions HTTP/1.1",
    "POST /v1/chat/completions HTTP/1.1",
    "OPTIONS * HTTP/1.1",
    "GET /%00%ff/../x?y HTTP/1.0",
]
HEADERS = [
    "Host: localhost",
    "Content-Type: application/json",
    "Content-Length: 45",
    "Transfer-Encoding: chunked",
    "Origin: http://localhost",
    "Connection: close",
    "Upgrade: websocket",
    "Expect: 100-continue",
    "Sec-Fetch-Site: none",
]
BODY = b'{"model":"dpo","prompt":"x","max_tokens":1,"n":1}'


def post(body: bytes) -> bytes:
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def damaged_body(number: int) -> bytes:
    draws = random.Random(f"body {number}")
    content = json.dumps(draws.choice(BODIES)).encode()
    for _ in range(draws.choice((1, 1, 2))):
        form: Form = "json" if draws.random() < 0.85 else "bytes"
        with contextlib.suppress(ValueError, RecursionError):  # what is not JSON any more stays as it is
            content = mutate(content, form, draws).content
    return post(content[:990_000])


def damaged_request(number: int) -> bytes:
    draws = random.Random(f"request {number}")
    headers = draws.sample(HEADERS, draws.randrange(1, len(HEADERS)))
    content = "\r\n".join([draws.choice(LINES), *headers, "", ""]).encode() + BODY
    form: Form = draws.choice(("bytes", "text"))
    return mutate(content, form, draws).content[:990_000]


def answers(port: int, requests: Sequence[bytes], patience: float) -> Iterator[bytes]:
    """What comes back for each, from a connection of its own, until its end or for that many seconds in all."""
    with contextlib.ExitStack() as stack:
        found: dict[socket.socket, bytearray] = {}
        for request in requests:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            with contextlib.suppress(OSError):  # refused before all of it was sent
                connection.sendall(request)
            found[connection] = bytearray()
        end, still = time.monotonic() + patience, set(found)
        while still and time.monotonic() < end:
            for connection in select.select(list(still), [], [], max(0.0, end - time.monotonic()))[0]:
                try:
                    part = connection.recv(65_536)
                except ConnectionResetError:
                    part = b""
                found[connection] += part
                if not part:
                    still.remove(connection)
        yield from map(bytes, found.values())


@pytest.mark.parametrize(("make", "patience"), [(damaged_body, 60.0), (damaged_request, 0.3)])
def test_no_request_is_a_bug(server: Server, make: Callable[[int], bytes], patience: float) -> None:
    httpx.post(f"{server.address}/v1/completions", json={**BODIES[0], "n": 16}, timeout=60)  # memory has its size
    memory, log = server.process.memory_info().rss, server.log.stat().st_size
    counts: Counter[str] = Counter()
    for first in range(0, REQUESTS, TOGETHER):
        requests = [make(number) for number in range(first, first + TOGETHER)]
        for number, answer in enumerate(answers(server.port, requests, patience), start=first):
            status = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
            counts[status[1].decode() if status else "no answer"] += 1
            if make is damaged_body:  # whatever it holds, the head is valid
                assert status, number
            if not status:
                continue
            assert status[1] in (b"200", b"100") or status[1].startswith(b"4"), (number, answer[:300])
            content = answer.split(b"\r\n\r\n", 1)[1]
            if status[1].startswith(b"4") and content.startswith(b"{"):
                message = json.loads(content[: content.index(b"}}") + 2])["error"]["message"]
                assert message.isprintable(), number
                assert len(message) < 500, number
    assert counts["200"] > REQUESTS / 20  # some get through
    assert counts["400"] > REQUESTS / 20
    start = time.monotonic()
    assert httpx.post(f"{server.address}/v1/completions", json=BODIES[0], timeout=60).status_code == 200
    assert time.monotonic() - start < 30
    assert server.process.memory_info().rss - memory < 100e6
    assert server.log.stat().st_size - log < 20_000
    assert "Traceback" not in server.log.read_text()
