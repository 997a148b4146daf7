"""The server: OpenAI's `/v1/completions` and `/v1/models`, `/health`, and the page.

A request is read within limits (`limits.py`), checked and encoded in threads beside the event loop, and queued in the
engine. Its answer is one JSON object or, with `stream`, server-sent events. Every error, whatever its cause, has
OpenAI's form. A client that hangs up drops its job.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from llm.streaming import Wanted
from pipeline.serve import guard
from pipeline.serve.answer import BROKEN, Answer, error_response
from pipeline.serve.body import Bodies
from pipeline.serve.engine import Choice, Engine, Full, Job, Served
from pipeline.serve.limits import Limits
from pipeline.serve.request import APIError, CompletionRequest, parse

PAGE = Path(__file__).with_name("page.html")
ICON = Path(__file__).with_name("favicon.svg")
PATHS = "/v1/completions, /v1/models, /health, and / for the page"
CHECKERS = 4  # threads that check and encode requests
READ = ["GET", "HEAD"]


def build(models: Mapping[str, Served], limits: Limits, names: Collection[str] = (), local: bool = True) -> FastAPI:
    """The application. `names` and `local` say by which names it may be addressed (`guard.Guard`)."""
    threads = next(iter(models.values())).decoder.compute.threads
    bodies = Bodies(limits)

    @contextlib.asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        app.state.engine = Engine(limits.waiting, limits.at_once, threads)
        app.state.checkers = ThreadPoolExecutor(CHECKERS, "check")
        yield
        app.state.checkers.shutdown(cancel_futures=True)
        app.state.engine.stop()

    app = FastAPI(
        title="wordmill", lifespan=running, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    app.add_middleware(guard.Guard, names=names, local=local)

    @app.exception_handler(APIError)
    async def refused(request: Request, error: APIError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def missing(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path[:100]}: {error.detail}; there is {PATHS}"
        return error_response(APIError(error.status_code, message), error.headers)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        return error_response(APIError(500, BROKEN))

    @app.api_route("/", methods=READ)
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": guard.PAGE})

    @app.api_route("/favicon.ico", methods=READ)
    async def icon() -> Response:
        return Response(ICON.read_bytes(), media_type="image/svg+xml")

    @app.api_route("/health", methods=READ)
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.api_route("/v1/models", methods=READ)
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [described(name, served) for name, served in models.items()]}

    @app.api_route("/v1/models/{name:path}", methods=READ)
    async def one_model(name: str) -> dict[str, Any]:
        return described(name, find(models, name))

    @app.post("/v1/chat/completions")
    @app.post("/v1/responses")
    async def chat() -> Response:
        message = (
            "These models continue a text and hold no chats; use /v1/completions with a prompt "
            "(in OpenAI's client: client.completions.create)"
        )
        raise APIError(404, message, code="unsupported_endpoint")

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        engine: Engine = app.state.engine
        if engine.full:  # before a body is read
            raise busy(limits)
        async with bodies.read(request) as body:
            checking = asyncio.get_running_loop().run_in_executor(app.state.checkers, check, body, models)
            wanted, served, choices, prompt_tokens = await checking
        try:
            job = engine.submit(served, choices)
        except Full:
            raise busy(limits) from None
        answer = Answer(wanted, prompt_tokens, len(choices))
        if wanted.stream:
            return StreamingResponse(answer.events(job), media_type="text/event-stream")
        watch = asyncio.create_task(drop_when_gone(request, job))
        try:
            return JSONResponse(await answer.whole(job))
        finally:
            watch.cancel()

    return app


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


def check(body: bytes, models: Mapping[str, Served]) -> tuple[CompletionRequest, Served, list[Choice], int]:
    """What a body asks for: the request, its model, the choices to write, and the tokens of all prompts.

    Raises APIError. It may take a while, so it is not called in the event loop.
    """
    wanted = parse(body)
    served = find(models, wanted.model)
    block_size = served.decoder.config.block_size
    seed = secrets.randbits(62) if wanted.seed is None else wanted.seed
    sampling = wanted.sampling
    choices: list[Choice] = []
    count = 0
    for prompt in wanted.prompt:
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
        how = Wanted(limit, sampling, wanted.stops, wanted.logprobs)
        for _ in range(wanted.n):
            choices.append(Choice(ids, (seed + len(choices)) % 2**63, how))
    return wanted, served, choices, count


def encoded(prompt: str | list[Any], served: Served) -> list[int]:
    """A prompt's tokens: text after the token that begins every text, token ids as they are. Raises APIError."""
    block_size = served.decoder.config.block_size
    vocab_size = min(served.decoder.vocab_size, served.tokenizer.vocab_size)  # the model's may be padded
    if isinstance(prompt, list):
        if len(prompt) > block_size:
            raise too_long(block_size, f"{len(prompt):,} token ids")
        if not all(type(number) is int and 0 <= number < vocab_size for number in prompt):
            raise APIError(400, f"prompt: token ids are integers from 0, below {vocab_size}", "prompt")
        return prompt
    if len(prompt) > block_size * served.longest_token:  # not worth encoding
        raise too_long(block_size, f"{len(prompt):,} characters")
    return [served.tokenizer.begin_of_text, *served.tokenizer.encode(prompt)]


def too_long(block_size: int, length: str) -> APIError:
    message = f"This model's context holds {block_size} tokens; the prompt has {length}"
    return APIError(400, message, "prompt", "context_length_exceeded")


async def drop_when_gone(request: Request, job: Job) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.drop()
