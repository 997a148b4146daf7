"""The server: OpenAI's `/v1/completions` and `/v1/models`, and the page.

A request is read within limits (size, time, how many at once), checked, and queued in the engine; its answer is one
JSON or, with `stream`, server-sent events. Every error, whatever its cause, has OpenAI's form. A client that hangs up
drops its job.
"""

import asyncio
import contextlib
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from llm.decoder import Decoder
from llm.streaming import Piece, Token, Wanted, write
from llm.tokenizer.tokenizer import Tokenizer
from pipeline.serve.engine import Engine, Full, Job, Work
from pipeline.serve.request import APIError, CompletionRequest, parse

PAGE = Path(__file__).with_name("page.html")
# The page is one file and asks for nothing but this server's own answers.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
PORT = re.compile(r":\d+$")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class Limits:
    body_bytes: int = 1_000_000
    body_seconds: float = 10.0  # in which a body must have come
    bodies: int = 32  # read at the same time
    waiting: int = 64  # jobs in the queue; the next is refused with 429
    at_once: int = 4  # jobs that take turns


@dataclass(frozen=True)
class Served:
    """A model that answers."""

    decoder: Decoder
    tokenizer: Tokenizer
    created: int  # seconds since 1970

    @cached_property
    def longest_token(self) -> int:
        """Bytes of the longest one."""
        return max(len(token) for token in self.tokenizer.tokens)


def build(models: Mapping[str, Served], limits: Limits, hosts: Sequence[str] = ()) -> FastAPI:
    """The application. `hosts`, if any, are the only names by which it may be addressed."""
    threads = next(iter(models.values())).decoder.compute.threads
    reading = asyncio.Semaphore(limits.bodies)

    @contextlib.asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        app.state.engine = Engine(limits.waiting, limits.at_once, threads)
        yield
        app.state.engine.stop()

    app = FastAPI(title="wordmill", lifespan=running, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(HostGuard, hosts=hosts)

    @app.exception_handler(APIError)
    async def refused(request: Request, error: APIError) -> JSONResponse:
        return told(error)

    @app.exception_handler(HTTPException)
    async def missing(request: Request, error: HTTPException) -> JSONResponse:
        return told(APIError(error.status_code, f"{request.method} {request.url.path}: {error.detail}"))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        return told(APIError(500, "The server made a mistake; its log says which"))

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": POLICY})

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [described(name, served) for name, served in models.items()]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        return described(name, find(models, name))

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        engine: Engine = app.state.engine
        if engine.full:  # before a body is read
            raise busy(limits)
        async with reading:
            body = await read(request, limits)
        wanted = parse(body)
        served = find(models, wanted.model)
        works, prompt_tokens = plan(wanted, served)
        try:
            job = engine.submit(works)
        except Full:
            raise busy(limits) from None
        answer = Answer(wanted, prompt_tokens, len(works))
        if wanted.stream:
            return StreamingResponse(answer.events(job), media_type="text/event-stream")
        watch = asyncio.create_task(drop_when_gone(request, job))
        try:
            return JSONResponse(await answer.whole(job))
        finally:
            watch.cancel()

    return app


class HostGuard:
    """Refuses foreign names: a page from elsewhere could otherwise reach the server under one that leads here."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = PORT.sub("", Headers(scope=scope).get("host", "")) if scope["type"] == "http" else ""
        if scope["type"] == "http" and self._hosts and name not in self._hosts:
            error = APIError(403, f"This server answers as {', '.join(self._hosts)} only")
            await told(error)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def told(error: APIError) -> JSONResponse:
    headers = {"Retry-After": "1"} if error.status == 429 else {}
    return JSONResponse(error.body, status_code=error.status, headers=headers)


def busy(limits: Limits) -> APIError:
    return APIError(429, f"{limits.waiting} requests are waiting already; try again soon", code="queue_full")


def find(models: Mapping[str, Served], name: str) -> Served:
    if name not in models:
        message = f"The model {name[:100]!r} does not exist here; there are {', '.join(models)}"
        raise APIError(404, message, "model", "model_not_found")
    return models[name]


def described(name: str, served: Served) -> dict[str, Any]:
    config = served.decoder.config
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "wordmill",
        "max_model_len": config.block_size,
    }


async def read(request: Request, limits: Limits) -> bytes:
    """The body. Raises APIError if it is too large or does not come."""
    body = bytearray()
    too_large = APIError(413, f"The body is larger than {limits.body_bytes:,} bytes")
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length[:20]) > limits.body_bytes:
        raise too_large
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                body += part
                if len(body) > limits.body_bytes:
                    raise too_large
    except TimeoutError:
        raise APIError(408, f"The body did not come within {limits.body_seconds:g} s") from None
    except ClientDisconnect:
        raise APIError(400, "The client has gone") from None
    return bytes(body)


def plan(wanted: CompletionRequest, served: Served) -> tuple[list[Work], int]:
    """The continuations to write, one a choice, and the tokens of all prompts. Raises APIError."""
    block_size = served.decoder.config.block_size
    seed = secrets.randbits(62) if wanted.seed is None else wanted.seed
    works: list[Work] = []
    count = 0
    for prompt in wanted.prompts:
        ids = encoded(prompt, served)
        room = block_size - len(ids)
        limit = room if wanted.max_tokens is None else wanted.max_tokens
        if room < 1 or limit > room:
            message = (
                f"This model's context holds {block_size} tokens; you asked for {len(ids)} of prompt and "
                f"{wanted.max_tokens or 'some'} to follow"
            )
            raise APIError(400, message, "prompt" if room < 1 else "max_tokens", "context_length_exceeded")
        count += len(ids)
        for _ in range(wanted.n):
            how = Wanted(limit, wanted.sampling, wanted.stops, wanted.logprobs)
            works.append(partial(continuation, served, ids, (seed + len(works)) % 2**63, how))
    return works, count


def continuation(served: Served, prompt: Sequence[int], seed: int, wanted: Wanted) -> Iterator[Piece]:
    """The pieces of one choice."""
    return (piece for _, piece in write(served.decoder, served.tokenizer, [prompt], [seed], wanted))


def encoded(prompt: str | list[int], served: Served) -> list[int]:
    """A prompt's tokens: text after the token that begins every text, token ids as they are. Raises APIError."""
    if not isinstance(prompt, str):
        if max(prompt) >= served.decoder.vocab_size:
            raise APIError(400, f"prompt: token ids are below {served.decoder.vocab_size}", "prompt")
        return prompt
    block_size = served.decoder.config.block_size
    if len(prompt.encode()) > block_size * served.longest_token:  # not worth encoding
        message = f"This model's context holds {block_size} tokens; the prompt has {len(prompt):,} characters"
        raise APIError(400, message, "prompt", "context_length_exceeded")
    return [served.tokenizer.begin_of_text, *served.tokenizer.encode(prompt)]


async def drop_when_gone(request: Request, job: Job) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.drop()


class Answer:
    """What a job's pieces become, in one or as a stream."""

    def __init__(self, wanted: CompletionRequest, prompt_tokens: int, choices: int) -> None:
        self._wanted = wanted
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": wanted.model,
        }
        self._prompt_tokens = prompt_tokens
        self._written = 0  # tokens
        self._characters = [0] * choices

    async def whole(self, job: Job) -> dict[str, Any]:
        choices = [Piece() for _ in self._characters]
        logprobs: list[dict[str, Any]] = [self._logprobs([], 0) for _ in choices]
        async for number, piece in job.pieces():
            self._written += piece.count
            for key, values in self._logprobs(piece.tokens, len(choices[number].text)).items():
                logprobs[number][key] += values
            choices[number].text += piece.text
            choices[number].finish = piece.finish
        answers = [
            {
                "index": number,
                "text": choice.text,
                "logprobs": None if self._wanted.logprobs is None else logprobs[number],
                "finish_reason": choice.finish,
            }
            for number, choice in enumerate(choices)
        ]
        return {**self._head, "choices": answers, "usage": self._usage()}

    async def events(self, job: Job) -> AsyncIterator[str]:
        """Server-sent events, the last of them `[DONE]`."""
        try:
            async for number, piece in job.pieces():
                self._written += piece.count
                logprobs = self._logprobs(piece.tokens, self._characters[number]) if piece.tokens else None
                self._characters[number] += len(piece.text)
                if piece.text or piece.finish or logprobs:
                    choice = {"index": number, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish}
                    yield _event({**self._head, "choices": [choice]})
        except Exception:  # the engine has shown what it was
            yield _event(APIError(500, "The server made a mistake; its log says which").body)
            return
        if self._wanted.stream_options and self._wanted.stream_options.include_usage:
            yield _event({**self._head, "choices": [], "usage": self._usage()})
        yield "data: [DONE]\n\n"

    def _logprobs(self, tokens: Sequence[Token], offset: int) -> dict[str, Any]:
        """In OpenAI's form; the offset is of the text that was out when the token was drawn."""
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [token.top for token in tokens],
            "text_offset": [offset for _ in tokens],
        }

    def _usage(self) -> dict[str, int]:
        total = self._prompt_tokens + self._written
        return {"prompt_tokens": self._prompt_tokens, "completion_tokens": self._written, "total_tokens": total}


def _event(content: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"
