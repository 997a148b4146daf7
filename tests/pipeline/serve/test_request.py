"""Requests as clients send them: optional fields that are null, and sizes beyond all limits."""

import contextlib
import gc
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import from_json

from llm.compute import Compute, ComputeConfig
from llm.decoder import TorchDecoder
from llm.model import folder
from llm.tokenizer.tokenizer import Tokenizer
from pipeline.serve.app import check
from pipeline.serve.engine import Served
from pipeline.serve.request import APIError, CompletionRequest, parse

SMALLEST = {"model": "dpo", "prompt": "x"}
OPTIONAL = [name for name in CompletionRequest.model_fields if name not in SMALLEST]


@pytest.fixture(scope="module")
def served(models: dict[str, Path]) -> dict[str, Served]:
    compute = Compute(ComputeConfig("cpu", "fp32", False, False, 1))
    return {
        name: Served(TorchDecoder(folder.load(path), compute), Tokenizer.load(path), 0) for name, path in models.items()
    }


def parsed(**fields: Any) -> CompletionRequest:
    return parse(json.dumps({**SMALLEST, **fields}).encode())


@pytest.mark.parametrize("name", OPTIONAL)
def test_null_is_the_default(name: str) -> None:
    default = {} if name == "max_tokens" else parsed().model_dump()
    found = parsed(**{name: None})
    if name == "max_tokens":  # as many as the context leaves
        assert found.max_tokens is None
    else:
        assert found.model_dump() == default


def test_all_optional_fields_may_be_null_at_once() -> None:
    found = parsed(**dict.fromkeys(OPTIONAL))
    assert found.model_dump() == {**parsed().model_dump(), "max_tokens": None}
    assert parsed(stream_options={"include_usage": None, "include_obfuscation": None}).stream_options == (
        parsed().stream_options
    )


def test_a_prompt_that_is_null_is_the_beginning_of_a_text() -> None:
    assert parsed(prompt=None).prompt == [""]


# Bodies of a plain call to /v1/completions, written from what is known of each client's defaults. None was captured.
CLIENTS = {
    "openai, nulls": {"best_of": None, "echo": None, "frequency_penalty": None, "logit_bias": None, "logprobs": None},
    "langchain": {
        "temperature": 0.7, "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0, "n": 1, "logit_bias": {},
        "max_tokens": 256, "prompt": ["Once"], "seed": None, "logprobs": None,
    },
    "langchain, streaming": {"prompt": ["Once"], "stream": True, "stream_options": {"include_usage": True}},
    "litellm": {"temperature": 0.2, "stream": False, "best_of": 1, "echo": False, "suffix": "", "user": "u"},
    "vllm's": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 0},
    "obfuscation": {"stream": True, "stream_options": {"include_usage": False, "include_obfuscation": False}},
    "all choices": {"n": 3, "best_of": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", CLIENTS)
def test_what_clients_send(name: str) -> None:
    found = parsed(**CLIENTS[name])
    assert found.sampling.top_k == 0
    assert found.best_of in (None, 1, found.n)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"best_of": 2}, "best_of: 2 is not supported"),
        ({"top_k": -2}, "top_k"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty: 1e-300 is not in [0.01, 100]"),
        ({"model": None}, "model: input should be a valid string"),
        ({"stop": [None]}, "stop: expected"),
        ({"prompt": [None]}, "prompt: expected"),
        ({"logprobs": True}, "logprobs"),
        ({"n": True}, "n: input should be"),
        ({"stream_options": {"include_usage": 1}}, "stream_options"),
        ({"stream_options": {"x": 1}}, "x: no such argument"),
    ],
    ids=str,
)
def test_what_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(APIError) as refused:
        _ = parsed(**fields).sampling
    assert refused.value.status == 400
    assert str(refused.value).startswith(said)


def filled(item: str) -> str:
    return ",".join([item] * (990_000 // (len(item) + 1)))


HUGE = {
    "objects as prompts": f'"prompt": [{filled("{}")}]',
    "arrays as prompts": f'"prompt": [{filled("[]")}]',
    "arrays in a prompt": f'"prompt": [[{filled("[]")}]]',
    "nulls as ids": f'"prompt": [1, {filled("null")}]',
    "ids": f'"prompt": [{filled("1")}]',
    "sixteen prompts": f'"prompt": [{",".join(["[" + ",".join(["true"] * 12_000) + "]"] * 16)}]',
    "stops": f'"prompt": "x", "stop": [{filled("[]")}]',
    "long stops": f'"prompt": "x", "stop": [{json.dumps("y" * 980_000)}]',
    "names": f'"prompt": "x", {",".join(f"{chr(34)}n{number}{chr(34)}: 0" for number in range(80_000))}',
    "options": f'"prompt": "x", "stream_options": {{{filled(chr(34) + "x" + chr(34) + ":[]")}}}',
    "biases": f'"prompt": "x", "logit_bias": {{{",".join(f"{chr(34)}{n}{chr(34)}: []" for n in range(80_000))}}}',
    "a number": f'"prompt": "x", "seed": {"9" * 980_000}',
    "depth": f'"prompt": {"[" * 490_000}{"]" * 490_000}',
    "white space": f'"prompt": {json.dumps(" " * 980_000)}',
    "text": f'"prompt": {json.dumps("é" * 100_000)}',
}


@pytest.fixture
def no_collector() -> Iterator[None]:
    """The garbage collector does not go through what all tests have made so far. The server has the same set up."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("name", HUGE)
def test_a_large_request_costs_no_more_than_its_bytes(name: str, served: dict[str, Served]) -> None:
    """To check it takes hardly longer than to read its JSON."""
    body = f'{{"model": "dpo", {HUGE[name]}}}'.encode()
    assert len(body) < 1_000_000
    start = time.process_time()
    with contextlib.suppress(ValueError):
        from_json(body)
    read = time.process_time() - start
    start = time.process_time()
    with pytest.raises(APIError) as refused:
        check(body, served)
    assert time.process_time() - start < 3 * read + 0.1
    assert refused.value.status == 400
    assert len(str(refused.value)) < 400
