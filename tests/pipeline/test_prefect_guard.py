"""Which names and origins reach the Prefect server; and what the agent's worker makes of a run, without a server."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from pipeline.server import PrefectGuard

PORT = 4200


def answer(headers: list[tuple[str, str]], kind: str = "http") -> int:
    """The status that a request gets; 200 where it reaches the application, 403 also for a closed web socket."""
    sent: list[MutableMapping[str, Any]] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        sent.append({"status": 200})

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        return {"type": f"{kind}.connect"}

    guard = PrefectGuard(application, {"train.example.org", "box"}, ["https://pages.example.org"])
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    asyncio.run(guard({"type": kind, "headers": raw}, receive, send))
    return int(sent[0].get("status", 403))


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        (f"127.0.0.1:{PORT}", None, 200),
        (f"LOCALHOST:{PORT}", None, 200),
        (f"[::1]:{PORT}", None, 200),
        (f"192.168.1.7:{PORT}", None, 200),  # digits cannot be made to point elsewhere
        (f"box:{PORT}", None, 200),
        ("train.example.org", "https://train.example.org", 200),  # behind a proxy
        (f"127.0.0.1:{PORT}", f"http://127.0.0.1:{PORT}", 200),
        (f"127.0.0.1:{PORT}", f"http://localhost:{PORT}", 200),
        (f"127.0.0.1:{PORT}", "https://pages.example.org", 200),
        (f"evil.example:{PORT}", None, 403),  # rebound to this machine
        (f"127.0.0.1.evil.example:{PORT}", None, 403),
        (f"localhost.evil.example:{PORT}", None, 403),
        ("", None, 403),
        (f"user@127.0.0.1:{PORT}", None, 403),
        ("127.0.0.1:notaport", None, 403),
        (f"127.0.0.1:{PORT}", "http://evil.example", 403),
        (f"127.0.0.1:{PORT}", f"http://evil.example:{PORT}", 403),
        (f"127.0.0.1:{PORT}", "http://localhost:3000", 403),  # another program of this machine's
        (f"127.0.0.1:{PORT}", "http://127.0.0.1", 403),
        (f"127.0.0.1:{PORT}", "null", 403),
        (f"127.0.0.1:{PORT}", "", 403),
        (f"127.0.0.1:{PORT}", "file://", 403),
        (f"127.0.0.1:{PORT}", f"http://192.168.1.7:{PORT}", 403),
        (f"evil.example:{PORT}", f"http://evil.example:{PORT}", 403),
    ],
)
def test_host_and_origin(kind: str, host: str, origin: str | None, status: int) -> None:
    headers = [("Host", host), *([("Origin", origin)] if origin is not None else [])]
    assert answer(headers, kind) == status


def test_headers_that_contradict_each_other() -> None:
    assert answer([]) == 403
    assert answer([("Host", f"127.0.0.1:{PORT}"), ("Host", "evil.example")]) == 403
    own = ("Origin", f"http://127.0.0.1:{PORT}")
    assert answer([("Host", f"127.0.0.1:{PORT}"), own, ("Origin", "http://evil.example")]) == 403
