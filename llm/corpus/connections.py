"""HTTP connections that cannot be held for ever: by `urllib`, with a watch over how much arrives.

A socket's own time limit counts silence only: a server that sends a byte now and then, an endless row of `100 Continue`
or of header lines never reaches it. So a thread counts what arrives, and ends a connection over which less comes than
a stated rate.
"""

import http.client
import socket
import ssl
import threading
import urllib.request
from contextlib import suppress
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from llm.corpus.addresses import shown
from llm.errors import WordmillError


class Watch:
    """Ends the connection that it guards where less than `rate` bytes a second arrive over `seconds`."""

    def __init__(self, rate: float, seconds: float) -> None:
        self.rate = rate
        self.seconds = seconds
        self.too_slow = False
        self._arrived = 0
        self._over = threading.Event()
        self._guarded: socket.socket | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def arrived(self, count: int) -> None:
        """Count bytes of the body."""
        self._arrived += count

    def connect(self, *given: Any, **named: Any) -> socket.socket:
        """`socket.create_connection`, guarded; TLS may later take the socket over, so a duplicate is kept."""
        if self.too_slow:  # what had arrived was a redirect
            raise TimeoutError("too slow")
        made = socket.create_connection(*given, **named)
        with self._lock:
            self._let_go()  # of the one that answered with a redirect
            self._guarded = made.dup()
        return made

    def _let_go(self) -> None:
        if self._guarded is not None:
            self._guarded.close()
            self._guarded = None

    def _look(self) -> None:
        while not self._over.wait(self.seconds):
            if self._arrived < self.rate * self.seconds:
                self.too_slow = True
                with self._lock, suppress(OSError):  # where the server has closed it meanwhile
                    if self._guarded is not None:
                        self._guarded.shutdown(socket.SHUT_RDWR)
                return
            self._arrived = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self._let_go()


class _Http(urllib.request.HTTPHandler):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(self._connection, req)

    def _connection(self, host: str, **given: Any) -> http.client.HTTPConnection:
        made = http.client.HTTPConnection(host, **given)
        made._create_connection = self.watch.connect  # type: ignore[attr-defined]
        return made


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(self._connection, req)

    def _connection(self, host: str, **given: Any) -> http.client.HTTPConnection:
        made = http.client.HTTPSConnection(host, context=ssl.create_default_context(), **given)
        made._create_connection = self.watch.connect  # type: ignore[attr-defined]
        return made


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Redirects to http and https."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise WordmillError(
                f"{shown(req.full_url)}: redirects to {shown(newurl)!r}, which is neither http nor https"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        fp.close()  # urllib would read its body to the end, however long that is
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def opener(watch: Watch) -> urllib.request.OpenerDirector:
    """Proxies from the environment, redirects, http and https; nothing that opens file: or ftp:."""
    made = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Http(watch),
        _Https(watch),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
    ):
        made.add_handler(handler)
    return made
