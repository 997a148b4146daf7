"""Prefect's server behind a guard: no page of another origin, and no other name for this machine, reaches it.

Prefect's own server answers every page that the user's browser has open. Such a page needs no login: the browser is on
the same machine as the server. So two things are looked at before Prefect sees a request.

- `Host`: an address in digits, a loopback name, this machine's name, or a name that the operator has allowed. A
  foreign name that was made to point here (DNS rebinding) is refused.
- `Origin`: a browser sends it with each request that changes something. It must be the server's own.

Prefect's CSRF tokens are on, and its CORS headers name the server's own origin only. What an agent runs does not depend
on any of this (`pipeline.worker`).
"""

import os
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping
from typing import Any

from llm.errors import WordmillError
from pipeline import agent, origins

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CORS = "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"


def serve(host: str, port: int, names: Iterable[str]) -> None:
    """Serve until stopped. `names` are further names under which the server is reached. Raises WordmillError."""
    _check_free(host, port)
    allowed = [*names, host, socket.gethostname()]
    pages = os.environ.get(CORS) or ",".join(f"http://{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]"))
    defaults = {
        "PREFECT_SERVER_API_HOST": host,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
    }
    os.environ.update({**defaults, **agent.settings(), CORS: pages})
    import uvicorn
    from prefect.server.api.server import create_app

    print(f"Prefect: http://{_display(host)}:{port}", flush=True)
    guarded = PrefectGuard(create_app(final=True), allowed, pages.split(","))
    uvicorn.run(guarded, host=host, port=port, log_level="warning", timeout_keep_alive=5)


class PrefectGuard:
    """ASGI middleware: answers 403 to a foreign `Host` or `Origin`.

    `names` are host names of the server; `pages` are further origins whose pages may ask.
    """

    def __init__(self, app: App, names: Iterable[str], pages: Collection[str] = ()) -> None:
        self._app = app
        self._names = origins.Names(names, local=False)
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._problem(scope) if scope["type"] in ("http", "websocket") else None
        if problem is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": problem})
        else:
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": f"{problem}\n".encode()})

    def _problem(self, scope: Scope) -> str | None:
        found: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        hosts = found.get("host", [])
        host = origins.host_place(hosts[0]) if len(hosts) == 1 else None
        if host is None or host.name not in self._names:
            return "this server is not known by that name; start it with `wordmill server --allow-host NAME`"
        if any(not self._is_own(origin, host) for origin in found.get("origin", [])):
            return "a page of another origin may not use this server"
        return None

    def _is_own(self, origin: str, host: origins.Place) -> bool:
        page = origins.origin_place(origin)
        if page is None:
            return False
        loopback = page.name in origins.LOOPBACK and host.name in origins.LOOPBACK
        same = page == host or (loopback and page.port == host.port)
        return same or origin.lower() in self._pages


def _display(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _check_free(host: str, port: int) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise WordmillError(f"--host {host} --port {port}: cannot listen there: {error.strerror or error}") from None
