"""The downloader against servers that lie, drip and never end: it always ends, with one line."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from llm.corpus import url as url_module
from llm.corpus.addresses import fill, shown
from llm.corpus.build import build
from llm.corpus.config import CorpusConfig
from llm.corpus.url import download, file_name
from llm.errors import ConfigError, TransientError, WordmillError
from tests.llm.corpus.raw_server import RawServer, raw_server

DATA = bytes(range(256)) * 400
SHA256 = hashlib.sha256(DATA).hexdigest()
HEAD = f"HTTP/1.1 200 OK\r\nContent-Length: {len(DATA)}\r\n\r\n".encode()
ANNOUNCED = b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n"


def refused(server: RawServer, folder: Path, kind: type[WordmillError] = WordmillError, **given: Any) -> str:
    with pytest.raises(kind) as caught:
        download(server.url, SHA256, folder / "words.txt", wait=lambda seconds: None, **given)
    assert "\n" not in str(caught.value)
    assert type(caught.value) is kind
    return str(caught.value)


def test_a_proxy_that_cuts_at_the_same_place_is_given_up(tmp_path: Path) -> None:
    with raw_server(then=HEAD + DATA[:50_000]) as server:  # ignores Range, so that every try starts over
        assert "5 tries in vain" in refused(server, tmp_path, TransientError)
        assert len(server.requests) == url_module.RETRIES + 1


def test_one_that_also_refuses_the_range_now_and_then_is_given_up(tmp_path: Path) -> None:
    cut, other = HEAD + DATA[:50_000], b"HTTP/1.1 206 x\r\nContent-Range: bytes 7-9/99\r\nContent-Length: 3\r\n\r\nabc"
    with raw_server(*[cut, other] * 40) as server:
        refused(server, tmp_path, TransientError)
        assert len(server.requests) < 10


def test_a_byte_a_try_is_given_up(tmp_path: Path) -> None:
    def byte(number: int) -> bytes:
        place = f"bytes {number}-{len(DATA) - 1}/{len(DATA)}"
        return f"HTTP/1.1 206 x\r\nContent-Range: {place}\r\nContent-Length: 9\r\n\r\n".encode() + b"x"

    with raw_server(HEAD + b"x", *[byte(number) for number in range(1, 200)]) as server:
        assert "50 tries in vain" in refused(server, tmp_path, TransientError)
        assert len(server.requests) == url_module.POOR_TRIES + 1


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (ANNOUNCED, b"x"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"x"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 302 x\r\nLocation: /", b"x"),
    ],
    ids=["body", "body without an end", "chunks", "header", "continue", "location"],
)
def test_a_drip_is_given_up(head: bytes, piece: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url_module, "SLOW_SECONDS", 0.1)
    monkeypatch.setattr(url_module, "SLOWEST", 1e6)
    monkeypatch.setattr(url_module, "RETRIES", 2)
    with raw_server() as server:
        server.then = server.endless(head, piece, pause=0.01)
        assert "less than 1e+06 bytes a second over 0.1 s, 2 tries in vain" in refused(server, tmp_path, TransientError)
        assert len(server.requests) == 3


@pytest.mark.parametrize("coding", ["", "Transfer-Encoding: chunked\r\n"])
def test_an_endless_body_ends_at_the_limit(coding: str, tmp_path: Path) -> None:
    piece = b"x" * 65_536
    with raw_server() as server:
        server.then = server.endless(
            f"HTTP/1.1 200 OK\r\n{coding}\r\n".encode(), b"10000\r\n" + piece + b"\r\n" if coding else piece
        )
        line = refused(server, tmp_path, limit=1_000_000)
    assert "more than 1,000,000 bytes; if that is right, raise corpus.max_download_bytes" in line
    assert list(tmp_path.glob("*.part")) == []


def test_a_full_disk_is_seen_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url_module.shutil, "disk_usage", lambda path: url_module.shutil._ntuple_diskusage(99, 99, 7))
    with raw_server(ANNOUNCED) as server:
        assert "9,000,000 bytes, of which 0 are here, but" in refused(server, tmp_path)
    monkeypatch.setattr(url_module, "SPACE_CHECK", 1000)
    monkeypatch.setattr(url_module, "SPACE_KEPT", 8)
    monkeypatch.setattr(url_module.shutil, "disk_usage", lambda path: url_module.shutil._ntuple_diskusage(999, 9, 7))
    with raw_server() as server:
        server.then = server.endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 10_000)
        assert "does not say how long it is" in refused(server, tmp_path)


def test_a_body_longer_than_announced_ends(tmp_path: Path) -> None:
    (tmp_path / "words.txt.part").write_bytes(DATA[:100])
    ranged = f"HTTP/1.1 206 x\r\nContent-Range: bytes 100-199/{len(DATA)}\r\n\r\n".encode()
    with raw_server(ranged + DATA[100:] + b"more") as server:
        assert f"more comes than the {len(DATA):,} bytes announced" in refused(server, tmp_path)


def test_the_body_of_a_redirect_is_not_read(tmp_path: Path) -> None:
    with raw_server() as server:
        server.answers = [server.endless(b"HTTP/1.1 302 x\r\nLocation: /b.txt\r\n\r\n", b"x" * 65_536), HEAD + DATA]
        download(server.url, SHA256, tmp_path / "words.txt")
    assert (tmp_path / "words.txt").read_bytes() == DATA


NUMBERS = ["²", "-1", "1e9", "0x10", "9" * 5000, " ", "٣", "nan", "1,2", "\x00", "99999999999999999999999"]


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_that_are_none(number: str, tmp_path: Path) -> None:
    value = number.encode("utf-8")
    answers = [
        b"HTTP/1.1 503 x\r\nRetry-After: " + value + b"\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 x\r\nContent-Length: " + value + b"\r\n\r\nabc",
        b"HTTP/1.1 206 x\r\nContent-Range: bytes " + value + b"-9/" + value + b"\r\n\r\nabc",
        b"HTTP/1.1 416 x\r\nContent-Range: bytes */" + value + b"\r\n\r\nabc",
        b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n" + value + b"\r\nabc",
        b"HTTP/1.1 " + value + b" x\r\n\r\n",
    ]
    for answer in answers:
        (tmp_path / "words.txt.part").write_bytes(b"")
        with raw_server(then=answer) as server, pytest.raises(WordmillError) as caught:
            download(server.url, SHA256, tmp_path / "words.txt", wait=lambda seconds: None)
        assert "\n" not in str(caught.value)


DATES = ["Mon, 99 Dec 9999 99:99:99 GMT", "Thu, 01 Jan 0000 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 -9999", "soon"]


@pytest.mark.parametrize("date", DATES)
def test_dates_that_are_none(date: str, tmp_path: Path) -> None:
    with raw_server(then=f"HTTP/1.1 503 x\r\nRetry-After: {date}\r\n\r\n".encode()) as server:
        refused(server, tmp_path, TransientError)


PLACES = ["http://[::1", "http://x:y/", "//", "http:///a", "http://a b/", "http://\x7f/", "http://" + "x" * 300 + "/a"]


@pytest.mark.parametrize(
    "place", [*PLACES, "/a\x0bb\x1b[31m", "javascript:1", "http://127.0.0.1:99999/", "http://xn--/"]
)
def test_redirects_to_nowhere_are_refused_at_once(place: str, tmp_path: Path) -> None:
    with raw_server(f"HTTP/1.1 302 x\r\nLocation: {place}\r\n\r\n".encode()) as server:
        with pytest.raises(WordmillError) as caught:
            download(server.url, SHA256, tmp_path / "words.txt", wait=lambda seconds: None)
        assert "\n" not in str(caught.value)
        assert "\x1b" not in str(caught.value)


def test_a_reason_phrase_does_not_reach_the_terminal(tmp_path: Path) -> None:
    with raw_server(b"HTTP/1.1 404 \x1b[2Jgone\xe2\x80\xae\r\n\r\n") as server:
        line = refused(server, tmp_path)
    assert "\\x1b[2Jgone" in line
    assert line.isprintable()


def test_a_validator_that_no_header_can_carry(tmp_path: Path) -> None:
    cut = f'HTTP/1.1 200 x\r\nETag: "a\r\n b\x01"\r\nContent-Length: {len(DATA)}\r\n\r\n'.encode() + DATA[:9]
    with raw_server(cut, HEAD + DATA) as server:
        download(server.url, SHA256, tmp_path / "words.txt", wait=lambda seconds: None)
        assert b"If-Range" not in server.requests[1]


def test_a_damaged_note_is_no_validator(tmp_path: Path) -> None:
    (tmp_path / "words.txt.part").write_bytes(DATA[:9])
    (tmp_path / "words.txt.part.json").write_text("[3]")
    with raw_server(HEAD + DATA) as server:
        download(server.url, SHA256, tmp_path / "words.txt")


def test_file_names_fit_every_file_system() -> None:
    name = file_name("https://example.org/" + "%E4%BD%A0" * 200 + ".jsonl.gz")
    assert len(name.encode()) <= 100
    assert name.endswith(".jsonl.gz")


class Secret(NamedTuple):
    address: Callable[[str], str]  # from a host
    sent: bytes


SECRETS = [
    Secret(
        lambda host: f"http://${{DOWNLOAD_WHO}}:${{DOWNLOAD_WORD}}@{host}/a.txt", b"Authorization: Basic bWU6czNjcmV0"
    ),
    Secret(lambda host: f"http://{host}/a.txt?token=${{DOWNLOAD_WORD}}", b"GET /a.txt?token=s3cret HTTP"),
    Secret(lambda host: f"http://{host}/${{DOWNLOAD_WORD}}/a.txt", b"GET /s3cret/a.txt HTTP"),
]


@pytest.mark.parametrize("secret", SECRETS)
def test_secrets_come_from_the_environment_and_are_kept_nowhere(
    secret: Secret, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOWNLOAD_WHO", "me")
    monkeypatch.setenv("DOWNLOAD_WORD", "s3cret")
    text = b"One text.\n" * 500
    sent = f"HTTP/1.1 200 x\r\nContent-Length: {len(text)}\r\n\r\n".encode()
    busy = b"HTTP/1.1 503 x\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n"
    with raw_server(busy, sent + text) as server:
        config = CorpusConfig(
            source="url", urls=(secret.address(server.host),), sha256=(hashlib.sha256(text).hexdigest(),), documents=0
        )
        build(config, tmp_path / "corpus", tmp_path / "scratch")
        assert secret.sent in server.requests[0]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"s3cret" in path.read_bytes() for path in files)
    assert "s3cret" not in capsys.readouterr().err
    assert "DOWNLOAD_WORD" in json.loads((tmp_path / "corpus/manifest.json").read_text())["settings"]["urls"][0]


def test_a_password_is_not_sent_to_another_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOWNLOAD_WORD", "s3cret")
    with raw_server(HEAD + DATA) as other:
        with raw_server(f"HTTP/1.1 302 x\r\nLocation: {other.url}\r\n\r\n".encode()) as server:
            download(f"http://me:${{DOWNLOAD_WORD}}@{server.host}/a.txt", SHA256, tmp_path / "a.txt")
            assert b"Authorization" in server.requests[0]
        assert b"Authorization" not in other.requests[0]


@pytest.mark.parametrize(
    "address",
    [
        "https://me:s3cret@example.org/a.txt",  # no other 3 is in any
        "https://s3cret@example.org/a.txt",
        "https://example.org/a.txt?token=s3cret",
        "https://example.org/a.txt?x=1&X-Amz-Signature=s3cret",
        "https://example.org/a.txt?sig=s3cret",
        "https://example.org/a.txt?api_key=s3cret",
        "https://me:s3 cret@example.org/a.txt",
        "https://me:s3cret@[::1/a.txt",
        "https://me:s3cret@example.org/a.zip?token=s3cret",
        "ftp://me:s3cret@example.org/a.txt",
    ],
)
def test_written_out_secrets_are_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CorpusConfig(source="url", urls=(address,), sha256=(SHA256,))
    assert caught.value.field == "urls"
    assert "3" not in str(caught.value) + caught.value.problem


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "download_word", "XDOWNLOAD_WORD"])
def test_an_address_takes_no_other_variables_along(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "s3cret")
    for address in (
        "https://evil.example/${%s}",
        "https://me:${%s}@evil.example/a",
        "https://evil.example/a?token=${%s}",
    ):
        with pytest.raises(ConfigError, match=f"names the environment variable {name}; use one whose name begins with"):
            CorpusConfig(source="url", urls=(address % name,), sha256=(SHA256,))


@pytest.mark.parametrize("sign", ["\x00", "\x1b", "\x7f", "\n", "\x85", "\u202e"])
def test_control_characters_are_refused_at_once(sign: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="control characters"):
        CorpusConfig(source="url", urls=(f"https://example.org/a{sign}.txt",), sha256=(SHA256,))
    if sign != "\x00":  # which no environment variable holds
        monkeypatch.setenv("DOWNLOAD_WORD", f"a{sign}b")
        with pytest.raises(WordmillError, match="no address has"):
            fill("https://example.org/${DOWNLOAD_WORD}.txt")


def test_a_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(WordmillError, match="the environment variable DOWNLOAD_NOT_SET_ANYWHERE is not set"):
        fill("https://example.org/a.txt?token=${DOWNLOAD_NOT_SET_ANYWHERE}")


def test_shown_addresses_hold_no_secret() -> None:
    assert shown("https://me:pw@host/a?sig=1#x") == "https://***@host/a?…"
    assert shown("http://[::1") == "http://[::1"
