"""What a client may ask for, read strictly, and how it is told that it may not.

The fields are those of OpenAI's `/v1/completions`, with the same meanings and defaults, and `top_k`, `min_p` and
`repetition_penalty`. What is not
supported is refused and not passed over, since it would change the text. Errors have OpenAI's form, so that its client
raises the right exception.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llm.sampling import Sampling

MAX_CHOICES = 16  # prompts times n
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256
TokenId = Annotated[int, Field(ge=0)]
Prompt = str | Annotated[list[TokenId], Field(min_length=1)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]


class APIError(Exception):
    """What becomes an answer of HTTP `status` in OpenAI's form."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool = False


class CompletionRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    model: str
    prompt: Prompt | Annotated[list[Prompt], Field(min_length=1, max_length=MAX_CHOICES)]
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = 16  # null: as many as the context leaves
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=2**31)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    user: str | None = None  # taken and not used
    # Only with the values that change nothing.
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """The prompts as a list, whether one or several were given."""
        several = isinstance(self.prompt, list) and not isinstance(self.prompt[0], int)
        return self.prompt if several else [self.prompt]  # type: ignore[return-value,list-item]

    @property
    def sampling(self) -> Sampling:
        """How each token is drawn."""
        return Sampling(
            self.temperature,
            self.top_k,
            self.top_p,
            self.min_p,
            self.repetition_penalty,
            self.presence_penalty,
            self.frequency_penalty,
        )

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


def parse(body: bytes) -> CompletionRequest:
    """The request in `body`. Raises APIError."""
    try:
        request = CompletionRequest.model_validate_json(body)
    except ValidationError as error:
        raise _told(error.errors(include_url=False, include_context=False)) from None
    if len(request.prompts) * request.n > MAX_CHOICES:
        raise APIError(
            400, f"{len(request.prompts)} prompts with n = {request.n}: at most {MAX_CHOICES} choices at once", "n"
        )
    return request


# What fields of several types may be: pydantic names each type's complaint, and none of them helps.
SEVERAL = {
    "prompt": f"expected a text, a list of token ids, or a list of up to {MAX_CHOICES} of these",
    "stop": f"expected up to {MAX_STOPS} texts of 1 to {MAX_STOP_CHARACTERS} characters",
}


def _told(errors: Sequence[Any]) -> APIError:
    """One error out of pydantic's, the one deepest in the request."""
    error = max(errors, key=lambda found: len(found["loc"]))
    if error["type"] == "json_invalid":
        return APIError(400, f"The body is not valid JSON: {error['msg'].removeprefix('Invalid JSON: ')}")
    if not error["loc"]:
        return APIError(400, 'The body is not a JSON object; send {"model": …, "prompt": …}')
    field = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        return APIError(400, f"{field[:100]}: no such argument is supported", field[:100], "unsupported_argument")
    if error["type"] == "missing":
        return APIError(400, f"{field}: missing", field)
    message = SEVERAL.get(field, error["msg"][0].lower() + error["msg"][1:])
    return APIError(400, f"{field}: {message}; found {repr(error['input'])[:80]}", field)
