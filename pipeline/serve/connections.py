"""Connections within limits: how many there are, and how long they may keep the server waiting.

uvicorn limits none of this. A connection waits for its client while a request is not complete, between requests, and
while the client does not take what is sent. When there are too many, the one that has waited longest gives way to the
new one: so idle connections, however many, never keep a client out.
"""

import asyncio
import json
import logging
import socket
import time
from collections import Counter
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.serve.limits import Limits
from pipeline.serve.request import APIError

ACCEPTED = 64  # connections in one go, beside those within the limit
BACKLOG = 1024  # connections that the kernel keeps for later
SWEEP_TICKS = 10  # of uvicorn's, a tenth of a second each


class Config(uvicorn.Config):
    """uvicorn's settings for this server."""

    def __init__(self, app: Any, limits: Limits) -> None:
        super().__init__(
            app,
            http=Connection,
            ws="none",
            loop="asyncio",
            log_level="warning",
            access_log=False,
            server_header=False,
            backlog=ACCEPTED,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=3,
        )
        self.limits = limits
        for name in ("uvicorn.error", "asyncio", "wordmill.serve"):
            logging.getLogger(name).addFilter(Repeated(limits.log_lines))


class Server(uvicorn.Server):
    """uvicorn's server, which closes connections that let it wait."""

    config: Config

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or []:
            # asyncio takes one number for the kernel's queue and for what it accepts in one go
            listening.listen(BACKLOG)

    async def on_tick(self, counter: int) -> bool:
        if counter % SWEEP_TICKS == 0:
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection):
                    connection.close_if_late()
        return await super().on_tick(counter)


class Connection(H11Protocol):
    """A connection that knows since when it waits for its client."""

    config: Config

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._idle_since = self.loop.time()
        self._stalled_since: float | None = None
        self._closing_since: float | None = None
        waiting = [one for one in self.connections if isinstance(one, Connection) and one.waiting_since is not None]
        if len(self.connections) > self.config.limits.connections and waiting:
            min(waiting, key=lambda one: one.waiting_since or 0).transport.abort()

    @property
    def waiting_since(self) -> float | None:
        """Since when the client is to do something. None while the server is."""
        if self.transport.is_closing():
            return None
        if self._stalled_since is not None:
            return self._stalled_since
        return self._idle_since if not self._answering or self.cycle.more_body else None

    @property
    def _answering(self) -> bool:
        """A request's head has come, and its answer is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    def close_if_late(self) -> None:
        """Close the connection if its client has let the server wait too long."""
        limits, now = self.config.limits, self.loop.time()
        if self.transport.is_closing():  # something is not sent yet
            self._closing_since = self._closing_since or now
            if now - self._closing_since > limits.stall_seconds:
                self.transport.abort()
        elif self._stalled_since is not None:
            if now - self._stalled_since > limits.stall_seconds:
                self.transport.abort()
        elif not self._answering and now - self._idle_since > limits.head_seconds:
            # Once a head has come, the application limits the time for its body.
            self._refuse(APIError(408, f"The request did not come within {limits.head_seconds:g} s"))

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        self._stalled_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._stalled_since = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self._refuse(APIError(400, "The request is not valid HTTP/1.1"))

    def _refuse(self, error: APIError) -> None:
        """Send an error where an answer may still begin, and close."""
        content = json.dumps(error.body).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(content))), ("Connection", "close")]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self._answering:
            events = (
                h11.Response(status_code=error.status, headers=headers),
                h11.Data(data=content),
                h11.EndOfMessage(),
            )
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()


class Repeated(logging.Filter):
    """Lets a message through so many times a minute, so that no client can fill a disk."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._times = times
        self._minute = 0
        self._seen: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        minute = int(time.monotonic() // 60)
        if minute != self._minute:
            self._minute = minute
            self._seen.clear()
        kind = f"{record.name} {record.levelno} {record.msg}"[:200]
        self._seen[kind] += 1
        if self._seen[kind] == self._times:
            record.msg = f"{record.msg} (no more of these in this minute)"
        return self._seen[kind] <= self._times and len(self._seen) <= 10 * self._times
