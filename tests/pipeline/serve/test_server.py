"""The server against OpenAI's own client, against what no client should send, and under more than it can do."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import openai
import pytest
import torch

from llm.compute import Compute
from llm.generate import Sampling, generate
from pipeline import cli
from pipeline.serve.body import Bodies
from pipeline.serve.limits import Limits
from pipeline.serve.request import APIError, CompletionRequest

from .conftest import BLOCK_SIZE, Server

JSON = {"Content-Type": "application/json"}
LONG: dict[str, Any] = {"model": "base", "prompt": "x", "max_tokens": None, "n": 16, "temperature": 0.5}


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_openai_client(client: openai.OpenAI, server: Server, compute: Compute) -> None:
    assert [model.id for model in client.models.list()] == ["base", "dpo"]
    assert client.models.retrieve("dpo").owned_by == "wordmill"
    for name, model in server.models.items():
        done = client.completions.create(model=name, prompt="Once", max_tokens=20, temperature=0, logprobs=2)
        ids = generate(model, [[256, *b"Once"]], 20, Sampling(temperature=0), 1, 256, compute)[0]
        (choice,) = done.choices
        assert choice.text == server.tokenizer.decode(ids)
        assert done.model == name
        assert done.usage
        assert done.usage.prompt_tokens == 5
        assert choice.logprobs
        assert choice.logprobs.token_logprobs
        with torch.no_grad():
            exact = model(torch.tensor([[256, *b"Once", *ids]]))[0, 4:-1].log_softmax(-1)
        expected = exact[torch.arange(len(ids)), torch.tensor(ids)].tolist()
        assert choice.logprobs.token_logprobs[: len(ids)] == pytest.approx(expected, abs=1e-4)
        assert choice.logprobs.top_logprobs
        assert all(len(top) <= 2 for top in choice.logprobs.top_logprobs)


def test_streamed_text_is_the_same_and_so_is_a_seed(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "dpo", "prompt": ["Once", "It"], "n": 2, "seed": 7, "max_tokens": 30}
    whole = client.completions.create(**asked)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in whole.choices}) == 4
    texts, reasons, usage = [""] * 4, [""] * 4, None
    for event in client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usage = event.usage or usage
        for choice in event.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage
    assert client.completions.create(**{**asked, "seed": None}).choices[0].text != texts[0]


def test_stop_and_token_ids(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "dpo", "temperature": 0, "max_tokens": 20}
    text = client.completions.create(prompt="Once", **asked).choices[0].text
    assert client.completions.create(prompt=[256, *b"Once"], **asked).choices[0].text == text
    stopped = client.completions.create(prompt="Once", stop=[text[5:7], "\0\0\0"], **asked).choices[0]
    assert stopped.text == text[: text.find(text[5:7])]
    assert stopped.finish_reason == "stop"


def test_the_client_raises_what_it_should(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there are base, dpo"):
        client.completions.create(model="gpt-9", prompt="x")
    with pytest.raises(openai.NotFoundError, match="use /v1/completions with a prompt"):
        client.chat.completions.create(model="dpo", messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.BadRequestError, match=f"holds {BLOCK_SIZE} tokens; you asked for 2 of prompt and 511"):
        client.completions.create(model="dpo", prompt="x", max_tokens=511)
    assert client.completions.create(model="dpo", prompt="x", max_tokens=510).choices[0].finish_reason


def test_the_client_may_send_null_for_every_optional_field(client: openai.OpenAI) -> None:
    fields = set(CompletionRequest.model_fields) - {"model", "prompt"}
    none: dict[str, Any] = dict.fromkeys(fields) | {"temperature": 0, "max_tokens": 5}
    text = client.completions.create(model="dpo", prompt="Once", extra_body=none).choices[0].text
    assert text == client.completions.create(model="dpo", prompt="Once", temperature=0, max_tokens=5).choices[0].text
    wild = {"top_k": -1, "stream_options": {"include_obfuscation": False, "include_usage": None}}
    assert client.completions.create(model="dpo", prompt="x", max_tokens=1, extra_body=wild).choices[0].finish_reason


def test_text_offsets_are_places_in_the_text(client: openai.OpenAI) -> None:
    """Of streams too, and where text is held back for a stop string."""
    asked: dict[str, Any] = {"model": "dpo", "prompt": "Once", "temperature": 0, "max_tokens": 30, "logprobs": 0}
    free = client.completions.create(**asked).choices[0]
    stops = [free.text[at : at + 2] + "\0" for at in range(0, 8, 2)]  # begun again and again, never complete
    for stream in (False, True):
        text, offsets, tokens = "", [], []
        answer = client.completions.create(**asked, stop=stops, stream=stream)
        for event in answer if stream else [answer]:
            (choice,) = event.choices
            text += choice.text
            offsets += choice.logprobs.text_offset if choice.logprobs else []
            tokens += choice.logprobs.tokens if choice.logprobs else []
        assert text == free.text
        assert free.logprobs
        assert offsets == free.logprobs.text_offset
        assert len(offsets) == len(tokens)
        for offset, token in zip(offsets, tokens, strict=True):
            assert token == "\ufffd" or text[offset] == token


def test_other_paths(server: Server) -> None:
    with httpx.Client(base_url=server.address) as session:
        assert session.get("/health").json() == {"status": "ok"}
        for path in ("/", "/health", "/favicon.ico", "/v1/models", "/v1/models/dpo"):
            whole, head = session.get(path), session.head(path)
            assert (whole.status_code, head.status_code, head.content) == (200, 200, b"")
            assert head.headers["content-length"] == whole.headers["content-length"]
        assert session.get("/favicon.ico").headers["content-type"] == "image/svg+xml"
        assert session.get("/v1/models/nine").json()["error"]["code"] == "model_not_found"
        for path in ("/v1/chat/completions", "/v1/responses"):
            answer = session.post(path, json={"model": "dpo", "messages": [{"role": "user", "content": "x"}]})
            assert answer.status_code == 404
            assert "use /v1/completions with a prompt" in answer.json()["error"]["message"]
        for path in ("/completions", "/v1/embeddings", "/chat/completions", "/x%1b[2J"):
            answer = session.post(path, json={})
            assert answer.status_code == 404
            assert "there is /v1/completions" in answer.json()["error"]["message"]
            assert answer.json()["error"]["message"].isprintable()
        wrong = session.get("/v1/completions")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
        assert session.get("/health", headers={"Host": "LOCALHOST"}).status_code == 200


def test_usage_is_null_until_the_end_of_a_stream(server: Server) -> None:
    body = {"model": "dpo", "prompt": "x", "max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}}
    events = httpx.post(f"{server.address}/v1/completions", json=body, timeout=60).text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    contents = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert [content["usage"] for content in contents[:-1]] == [None] * (len(contents) - 1)
    assert contents[-1]["usage"]["completion_tokens"] >= 1
    assert contents[-1]["choices"] == []


def test_a_stream_comes_as_it_is_written(server: Server) -> None:
    """The first text is there while most of it is still to be written."""
    body = {"model": "dpo", "prompt": "x", "max_tokens": None, "n": 16, "seed": 1, "stream": True}
    with httpx.stream("POST", f"{server.address}/v1/completions", json=body, timeout=60) as answer:
        parts = [part.count("data: ") for part in answer.iter_text()]
    assert sum(parts) > 100
    assert len(parts) > 20


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"model": "dpo", "prompt": "\\ud800"}', "not valid JSON"),
        (b"null", "not a JSON object"),
        ({"prompt": "x"}, "model: missing"),
        ({"model": "dpo"}, "prompt: missing"),
        ({"model": 3, "prompt": "x"}, "model: input should be a valid string"),
        ({"model": "dpo", "prompt": {"a": 1}}, "prompt: expected a text"),
        ({"model": "dpo", "prompt": []}, "prompt: expected a text"),
        ({"model": "dpo", "prompt": ["x"] * 17}, "prompt: expected a text"),
        ({"model": "dpo", "prompt": [[]]}, "prompt: expected a text"),
        ({"model": "dpo", "prompt": [-1]}, "token ids are integers from 0, below 257"),
        ({"model": "dpo", "prompt": [257]}, "token ids are integers from 0, below 257"),
        ({"model": "dpo", "prompt": [1, True]}, "token ids are integers from 0, below 257"),
        ({"model": "dpo", "prompt": [[1], ["x"]]}, "token ids are integers from 0, below 257"),
        ({"model": "dpo", "prompt": [10**30]}, "prompt"),
        ({"model": "dpo", "prompt": ["x"] * 9, "n": 2}, "at most 16 choices"),
        ({"model": "dpo", "prompt": "x" * 900_000}, "900,000 characters"),
        ({"model": "dpo", "prompt": [1] * 300_000}, "300,000 token ids"),
        ({"model": "dpo", "prompt": "x" * 511}, "you asked for 512 of prompt"),
        ({"model": "dpo", "prompt": "x" * 511, "max_tokens": None}, "you asked for 512 of prompt"),
        ({"model": "dpo", "prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"model": "dpo", "prompt": "x", "max_tokens": -1}, "max_tokens"),
        ({"model": "dpo", "prompt": "x", "max_tokens": 10**400}, "max_tokens"),
        ({"model": "dpo", "prompt": "x", "max_tokens": "9"}, "max_tokens"),
        ({"model": "dpo", "prompt": "x", "n": 10**9}, "n: input should be less"),
        ({"model": "dpo", "prompt": "x", "temperature": NAN}, "temperature"),
        ({"model": "dpo", "prompt": "x", "temperature": INFINITE}, "temperature"),
        ({"model": "dpo", "prompt": "x", "temperature": -0.1}, "temperature"),
        ({"model": "dpo", "prompt": "x", "top_p": 0}, "top_p"),
        ({"model": "dpo", "prompt": "x", "top_k": 2**40}, "top_k"),
        ({"model": "dpo", "prompt": "x", "seed": 2**70}, "seed"),
        ({"model": "dpo", "prompt": "x", "stop": [""]}, "stop: expected up to 4 texts"),
        ({"model": "dpo", "prompt": "x", "stop": ["x"] * 5}, "stop: expected up to 4 texts"),
        ({"model": "dpo", "prompt": "x", "logprobs": 6}, "logprobs"),
        ({"model": "dpo", "prompt": "x", "echo": True}, "echo"),
        ({"model": "dpo", "prompt": "x", "logit_bias": {"1": 2}}, "logit_bias"),
        ({"model": "dpo", "prompt": "x", "presence_penalty": 2.1}, "presence_penalty"),
        ({"model": "dpo", "prompt": "x", "frequency_penalty": -2.1}, "frequency_penalty"),
        ({"model": "dpo", "prompt": "x", "repetition_penalty": 0}, "repetition_penalty"),
        ({"model": "dpo", "prompt": "x", "min_p": 1.5}, "min_p"),
        ({"model": "dpo", "prompt": "x", "messages": []}, "messages: no such argument"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_nobody_should_send(server: Server, body: bytes | dict[str, Any], said: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = httpx.post(f"{server.address}/v1/completions", content=content, headers=JSON, timeout=30)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert said in error["message"]
    assert len(error["message"]) < 400


def test_other_refusals(server: Server) -> None:
    large = httpx.post(f"{server.address}/v1/completions", content=b"x" * 1_000_001, headers=JSON)
    parts = (b"x" * 100_000 for _ in range(11))
    streamed = httpx.post(f"{server.address}/v1/completions", content=parts, headers=JSON)
    for answer in (large, streamed):
        assert (answer.status_code, answer.json()["error"]["message"]) == (
            413,
            "The body is larger than 1,000,000 bytes",
        )
    assert (
        httpx.get(f"{server.address}/v1/completions")
        .json()["error"]["message"]
        .startswith("GET /v1/completions: Method Not Allowed")
    )
    foreign = httpx.get(server.address, headers={"Host": "evil.example"})
    assert (foreign.status_code, foreign.json()["error"]["message"][:22]) == (403, "This server answers to")
    with socket.create_connection(("127.0.0.1", server.port)) as raw:  # no HTTP at all
        raw.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert b"400" in raw.recv(1000)
    assert httpx.get(server.address).status_code == 200


def test_a_body_that_does_not_come() -> None:
    class Slow:
        headers: ClassVar[dict[str, str]] = {}

        async def stream(self) -> Any:
            yield b"{"
            await asyncio.sleep(60)

    async def read() -> None:
        async with Bodies(Limits(body_seconds=0.05)).read(Slow()):  # type: ignore[arg-type]
            pass

    with pytest.raises(APIError, match="did not come within") as refused:
        asyncio.run(read())
    assert refused.value.status == 408


def test_two_hundred_at_once(server: Server) -> None:
    before = server.process.memory_info().rss

    async def ask(session: httpx.AsyncClient, number: int) -> httpx.Response:
        body = {"model": ("base", "dpo")[number % 2], "prompt": "x" * (1 + number), "max_tokens": 16, "seed": number}
        return await session.post(f"{server.address}/v1/completions", json={**body, "stream": number % 3 == 0})

    async def all_of_them() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(timeout=60, limits=limits) as session:
            return await asyncio.gather(*(ask(session, number) for number in range(200)))

    answers = asyncio.run(all_of_them())
    good = [answer for answer in answers if answer.status_code == 200]
    assert len(good) >= 64
    for answer in answers:
        if answer.status_code == 200:
            assert "[DONE]" in answer.text or answer.json()["choices"][0]["finish_reason"]
        else:
            assert answer.status_code == 429
            assert answer.headers["retry-after"] == "1"
            assert answer.json()["error"]["type"] == "rate_limit_error"
    assert server.process.memory_info().rss - before < 60e6


@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_hang_up_stop_their_work(server: Server, stream: bool) -> None:
    """Jobs of half a minute together fill the places and the queue; when their clients go, it is free at once."""
    body = json.dumps({**LONG, "stream": stream}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n".encode()
    short = {"model": "dpo", "prompt": "x", "max_tokens": 1}

    def status() -> int:
        return httpx.post(f"{server.address}/v1/completions", json=short, timeout=60).status_code

    with contextlib.ExitStack() as clients:
        for _ in range(120):
            connection = clients.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            connection.sendall(head + body)
        deadline = time.monotonic() + 30
        with httpx.Client(timeout=60) as session:
            while session.post(f"{server.address}/v1/completions", json={}).status_code != 429:
                assert time.monotonic() < deadline
    start = time.monotonic()
    while status() != 200:
        assert time.monotonic() - start < 5
        time.sleep(0.05)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere: no model there"),
        (["--device", "tpu"], "--device: input should be 'auto'"),
        (["--threads", "0"], "--threads: 0 is not between"),
        (["--port", "99999"], "--port"),
        (["--host", "no.such.name.invalid"], "--host: no.such.name.invalid: "),
        (["--port", "taken"], "Address already in use; give another --port or --host"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str],
    said: str,
    server: Server,
    models: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [str(server.port) if word == "taken" else word for word in arguments]
    known = [] if "nowhere" in arguments else [str(models["dpo"])]
    monkeypatch.setattr("sys.argv", ["wordmill", "serve", *known, *given])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert said in told
    assert len(told.splitlines()) == 1
