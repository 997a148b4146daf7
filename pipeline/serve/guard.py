"""Which requests are heard at all: a web page from elsewhere must not use the server, though it runs in a browser here.

An address of loopback keeps other machines out, but not other pages. So a request is refused

- if its Host is not a name of this server: a foreign name may be made to lead here (DNS rebinding),
- if its Origin is another than the server's own, or the browser says that another site asks,
- if it carries content that is not JSON: a page may send that to any server without asking.

Every answer forbids browsers to embed it, to guess its type and to say where they came from.
"""

import socket
from collections.abc import Collection
from email.message import Message

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Event

from pipeline import origins
from pipeline.serve.answer import error_response
from pipeline.serve.request import APIError

NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
# The page is one file and asks for nothing but this server's own answers.
PAGE = f"{NOTHING}; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src 'self'"
HEADERS = {
    "Content-Security-Policy": NOTHING,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
OWN_SITE = ("same-origin", "none")  # of Sec-Fetch-Site: the server's own page, and the user's own doing


class Guard:
    """Lets requests through to `app` that are addressed to one of `names`, or to an address of this machine's.

    `local`: loopback's addresses only.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] = (), local: bool = True) -> None:
        self._app = app
        own = [] if local else [socket.gethostname(), socket.getfqdn()]
        self._names = origins.Names([*names, *own], local)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(event: Event) -> None:
            if event["type"] == "http.response.start":
                headers = MutableHeaders(scope=event)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(event)

        try:
            self._check(scope)
        except APIError as error:
            await error_response(error)(scope, receive, send_guarded)
        else:
            await self._app(scope, receive, send_guarded)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        host = origins.host_place(hosts[0]) if len(hosts) == 1 else None
        if host is None or host.name not in self._names:
            problem = f"This server answers to {self._names} and this machine's addresses; --name adds a name"
            raise APIError(403, problem)
        if any(origins.origin_place(origin) != host for origin in headers.getlist("origin")):
            raise APIError(403, "A page of another origin may not use this server")
        navigates = scope["method"] in ("GET", "HEAD") and scope["path"] == "/"
        if not navigates and any(site not in OWN_SITE for site in headers.getlist("sec-fetch-site")):
            raise APIError(403, "A page of another site may not use this server")
        if scope["method"] == "POST":
            _check_content(headers)


def _check_content(headers: Headers) -> None:
    types = headers.getlist("content-type")
    message = Message()
    message["Content-Type"] = types[0] if types else ""
    if len(types) != 1 or message.get_content_type() != "application/json":
        raise APIError(415, "The body must be JSON; send Content-Type: application/json")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise APIError(415, "The body must not be compressed; leave Content-Encoding out")
