"""Reading the bodies of requests, within limits of size, time and memory."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import Request
from starlette.requests import ClientDisconnect

from pipeline.serve.limits import Limits
from pipeline.serve.request import APIError


class Bodies:
    """Reads bodies. Small ones never wait for each other, and large ones are few at a time, so memory is bounded."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._large = 0  # under way

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The body, which counts as under way until the context ends.

        Raises APIError if it is too large, does not come, or is one large body too many.
        """
        limits = self._limits
        length = request.headers.get("content-length", "0")  # the protocol has checked that it is a number
        if int(length[:20]) > limits.body_bytes:
            raise self._too_large()
        body = bytearray()
        counted = False
        try:
            async with asyncio.timeout(limits.body_seconds):
                async for part in request.stream():
                    body += part
                    if len(body) > limits.body_bytes:
                        raise self._too_large()
                    if len(body) > limits.small_body_bytes and not counted:
                        if self._large >= limits.large_bodies:
                            raise APIError(429, "Too many large requests are on their way; try again soon")
                        self._large += 1
                        counted = True
            yield bytes(body)
        except TimeoutError:
            raise APIError(408, f"The body did not come within {limits.body_seconds:g} s") from None
        except ClientDisconnect:
            raise APIError(400, "The client has gone") from None
        finally:
            self._large -= counted

    def _too_large(self) -> APIError:
        return APIError(413, f"The body is larger than {self._limits.body_bytes:,} bytes")
