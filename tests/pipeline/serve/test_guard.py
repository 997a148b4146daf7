"""Pages of other origins, foreign names and other contents: refused, wherever the server listens."""

import json
from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from pipeline.serve import guard
from pipeline.serve.guard import Guard

JSON = {"content-type": "application/json"}


def guarded(local: bool = True) -> TestClient:
    """A server that answers everything, behind the guard."""

    async def answer(request: object) -> JSONResponse:
        return JSONResponse("heard")

    methods = ["GET", "POST", "PUT", "OPTIONS"]
    app = Starlette(routes=[Route("/{path:path}", answer, methods=methods)])
    return TestClient(Guard(app, ["Box.lan", "10.0.0.9"], local), base_url="http://localhost:8000")


@pytest.fixture
def client() -> Iterator[TestClient]:
    with guarded() as client:
        yield client


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("LOCALHOST:8000", 200),
        ("LocalHost", 200),
        ("localhost.", 200),
        ("127.0.0.1:8000", 200),
        ("127.0.0.2", 200),
        ("[::1]:8000", 200),
        ("box.lan:80", 200),
        ("BOX.LAN.", 200),
        ("10.0.0.9:1", 200),
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("192.168.1.7:8000", 403),
        ("[::2]", 403),
        ("[::1", 403),
        ("", 403),
        (":8000", 403),
        ("127.1", 403),
        ("2130706433", 403),
    ],
)
def test_hosts(client: TestClient, host: str, status: int) -> None:
    assert client.get("/", headers={"Host": host}).status_code == status


def test_an_open_server_answers_to_addresses_and_its_own_names() -> None:
    with guarded(local=False) as client:
        assert client.get("/", headers={"Host": "192.168.1.7:8000"}).status_code == 200
        assert client.get("/", headers={"Host": "box.lan"}).status_code == 200
        refused = client.get("/", headers={"Host": "evil.example"})
        assert refused.status_code == 403
        assert "--name adds a name" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", 200),
        ("http://LOCALHOST:8000", 200),
        ("http://localhost", 403),
        ("http://localhost:3000", 403),
        ("https://localhost:3000", 403),
        ("http://127.0.0.1:8000", 403),
        ("http://evil.example", 403),
        ("http://evil.example:8000", 403),
        ("null", 403),
        ("", 403),
        ("file://", 403),
        ("chrome-extension://abc", 403),
        ("http://[::1", 403),
        ("http://localhost:99999", 403),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "OPTIONS"])
def test_origins(client: TestClient, method: str, origin: str, status: int) -> None:
    headers = {"Origin": origin, "Host": "localhost:8000", **JSON}
    answer = client.request(method, "/v1/completions", headers=headers)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("box.lan", "https://box.lan", 200),  # behind a proxy that ends TLS
        ("box.lan", "http://box.lan.", 200),
        ("box.lan", "https://box.lan:8443", 403),
        ("localhost:99999", "null", 403),
        ("localhost:99999", "http://localhost:99999", 403),
    ],
)
def test_origin_beside_its_host(client: TestClient, host: str, origin: str, status: int) -> None:
    assert client.get("/v1/models", headers={"Host": host, "Origin": origin}).status_code == status


@pytest.mark.parametrize("site", ["cross-site", "same-site", "same-origin", "none"])
def test_what_the_browser_says_of_the_site(client: TestClient, site: str) -> None:
    own = site in ("same-origin", "none")
    headers = {"Sec-Fetch-Site": site}
    assert client.get("/v1/models", headers=headers).status_code == (200 if own else 403)
    assert client.post("/v1/completions", headers=headers | JSON).status_code == (200 if own else 403)
    assert client.get("/", headers=headers).status_code == 200  # a link to the page


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("application/json;charset=UTF-8", 200),
        ("text/plain", 415),
        ("text/plain;application/json", 415),
        ("text/plain; x=application/json", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/jsonx", 415),
        ("application/json, text/plain", 415),
        ("", 415),
        (None, 415),
    ],
)
def test_contents(client: TestClient, kind: str | None, status: int) -> None:
    headers = {} if kind is None else {"content-type": kind}
    answer = client.post("/v1/completions", content=b"{}", headers=headers)
    assert answer.status_code == status
    if status == 415:
        assert answer.json()["error"]["message"] == "The body must be JSON; send Content-Type: application/json"


def test_headers_that_come_twice_and_compression(client: TestClient) -> None:
    twice = [("content-type", "application/json"), ("content-type", "text/plain")]
    assert client.post("/", headers=twice, content=b"{}").status_code == 415
    assert client.post("/", headers={**JSON, "content-encoding": "gzip"}, content=b"{}").status_code == 415
    origins = [("origin", "http://localhost:8000"), ("origin", "http://evil.example")]
    assert client.get("/v1/models", headers=origins).status_code == 403


def test_every_answer_forbids_embedding_and_guessing(client: TestClient) -> None:
    for answer in (client.get("/v1/models"), client.get("/x", headers={"Host": "evil.example"}), client.post("/")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        for directive in ("frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'", "default-src 'none'"):
            assert directive in answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in guard.PAGE
    assert json.loads(client.get("/v1/models").text) == "heard"
