"""What a client may ask for, and the errors that say what it may not.

The fields are those of OpenAI's `/v1/completions`, with the same meanings and defaults, and `top_k`, `min_p` and
`repetition_penalty`. An optional field that is null has its default, as there. What is not supported is refused by
name, since it would change the text. Errors have OpenAI's form, so that its client raises the right exception.

Sizes are checked before contents: a request costs no more than its bytes, whatever it says.
"""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import from_json

from llm.errors import ConfigError
from llm.sampling import Sampling

MAX_CHOICES = 16  # prompts times n
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256
Prompt = str | list[Any]  # a text, or what must be token ids: `app.encoded` checks them once it knows how many fit
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]


class APIError(Exception):
    """What becomes an answer of HTTP `status` in OpenAI's form."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        message = printable(message)
        super().__init__(message)
        self.status = status
        kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def printable(text: str) -> str:
    """`text` with control characters escaped: it may hold what a client sent, and end on a terminal."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


class _Object(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        """A field that is null is taken as not given, unless null is one of its values."""
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None or name in NULLS}


NULLS = frozenset({"model", "prompt", "max_tokens"})  # fields in which null is a value, or a mistake


class StreamOptions(_Object):
    include_usage: bool = False
    include_obfuscation: bool = False  # padding that hides the length of tokens: taken, and none is added


class CompletionRequest(_Object):
    model: str
    prompt: list[Prompt]
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = 16  # null: as many as the context leaves
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=2**31)] = 0  # 0 and -1 keep all
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] = Field(default_factory=list)
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    user: str | None = None  # taken and not used
    # Only with the values that change nothing.
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None  # as many as `n`: all are given
    echo: Literal[False] = False
    suffix: Literal[""] = ""
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] = Field(default_factory=dict)

    @field_validator("prompt", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        """One prompt or several become a list; null is OpenAI's default, the beginning of a text."""
        if given is None:
            return [""]
        if isinstance(given, str) or (isinstance(given, list) and given and type(given[0]) is int):
            return [given]
        if not isinstance(given, list) or not 0 < len(given) <= MAX_CHOICES:
            raise ValueError(SEVERAL["prompt"])
        if not all((prompt and isinstance(prompt, list)) or isinstance(prompt, str) for prompt in given):
            raise ValueError(SEVERAL["prompt"])
        return given

    @property
    def sampling(self) -> Sampling:
        """How each token is drawn. Raises APIError."""
        try:
            return Sampling(
                self.temperature,
                max(self.top_k, 0),
                self.top_p,
                self.min_p,
                self.repetition_penalty,
                self.presence_penalty,
                self.frequency_penalty,
            )
        except ConfigError as error:
            raise APIError(400, str(error), error.field) from None

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop


# What fields of several types may be: pydantic names each type's complaint, and none of them helps.
SEVERAL = {
    "prompt": f"expected a text, a list of token ids, or a list of up to {MAX_CHOICES} of these",
    "stop": f"expected up to {MAX_STOPS} texts of 1 to {MAX_STOP_CHARACTERS} characters",
}


def parse(body: bytes) -> CompletionRequest:
    """The request in `body`. Raises APIError."""
    try:
        content = from_json(body)
    except ValueError as error:
        raise APIError(400, f"The body is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise APIError(400, 'The body is not a JSON object; send {"model": …, "prompt": …}')
    _check_names(content, CompletionRequest)
    if isinstance(options := content.get("stream_options"), dict):
        _check_names(options, StreamOptions)
    try:
        request = CompletionRequest.model_validate(content)
    except ValidationError as error:
        raise _explained(error.errors(include_url=False, include_context=False)) from None
    if len(request.prompt) * request.n > MAX_CHOICES:
        message = f"{len(request.prompt)} prompts with n = {request.n}: at most {MAX_CHOICES} choices at once"
        raise APIError(400, message, "n")
    if request.best_of not in (None, 1, request.n):
        raise APIError(400, f"best_of: {request.best_of} is not supported; leave it out, or give n", "best_of")
    return request


def _check_names(given: Mapping[str, Any], fields: type[BaseModel]) -> None:
    """Raises APIError for the first name that is not a field's."""
    unknown = next((name for name in given if name not in fields.model_fields), None)
    if unknown is not None:
        name = unknown[:100]
        raise APIError(400, f"{name}: no such argument is supported", name, "unsupported_argument")


def _explained(errors: Sequence[Any]) -> APIError:
    """One error out of pydantic's, the one deepest in the request."""
    error = max(errors, key=lambda found: len(found["loc"]))
    field = str(error["loc"][0])
    if error["type"] == "missing":
        return APIError(400, f"{field}: missing", field)
    message = cast(str, SEVERAL.get(field, error["msg"][0].lower() + error["msg"][1:]))
    return APIError(400, f"{field}: {message}; found {reprlib.repr(error['input'])[:80]}", field)
