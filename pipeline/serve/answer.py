"""A job's pieces in the form of OpenAI's answers: one JSON object, or server-sent events."""

import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse

from llm.streaming import Piece, Token
from pipeline.serve.engine import Job
from pipeline.serve.request import APIError, CompletionRequest

BROKEN = "The server made a mistake; its log says which"


def error_response(error: APIError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error in OpenAI's form."""
    again = {"Retry-After": "1"} if error.status == 429 else {}
    return JSONResponse(error.body, status_code=error.status, headers={**(headers or {}), **again})


class Answer:
    """The answer to one request. Text offsets and token counts go on from piece to piece."""

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
        self._choices = choices

    async def whole(self, job: Job) -> dict[str, Any]:
        """The answer in one."""
        choices = [Piece() for _ in range(self._choices)]
        async for pieces in job.pieces():
            for number, piece in pieces.items():
                choices[number] += piece
        self._written = sum(piece.count for piece in choices)
        return {**self._head, "choices": list(map(self._choice, range(self._choices), choices)), "usage": self._usage()}

    async def events(self, job: Job) -> AsyncIterator[str]:
        """Server-sent events, the last of them `[DONE]`."""
        with_usage = self._wanted.stream_options.include_usage
        try:
            async for pieces in job.pieces():
                for number, piece in pieces.items():
                    self._written += piece.count
                    if piece.text or piece.finish or piece.tokens:
                        usage = {"usage": None} if with_usage else {}
                        yield _event({**self._head, "choices": [self._choice(number, piece)], **usage})
        except Exception:  # the engine has logged it
            yield _event(APIError(500, BROKEN).body)
            return
        if with_usage:
            yield _event({**self._head, "choices": [], "usage": self._usage()})
        yield "data: [DONE]\n\n"

    def _choice(self, number: int, piece: Piece) -> dict[str, Any]:
        logprobs = None if self._wanted.logprobs is None else _logprobs(piece.tokens)
        return {"index": number, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish}

    def _usage(self) -> dict[str, int]:
        total = self._prompt_tokens + self._written
        return {"prompt_tokens": self._prompt_tokens, "completion_tokens": self._written, "total_tokens": total}


def _logprobs(tokens: Sequence[Token]) -> dict[str, Any]:
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [token.top for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }


def _event(content: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"
