"""The downloader against a server on loopback that misbehaves as real ones do."""

import contextlib
import hashlib
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llm.corpus import url as url_module
from llm.corpus.config import CorpusConfig
from llm.corpus.url import download, file_name, units
from llm.errors import WordmillError

ROOT = Path(__file__).parents[3]
DATA = random.Random(1).randbytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


class Server:
    """Serves `data`, with Range, If-Range and ETag; `plan` holds what to do to the next requests instead."""

    def __init__(self) -> None:
        self.data = DATA
        self.plan: list[Any] = []
        self.seen: list[dict[str, str]] = []
        self.chunk_pause = 0.0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.seen.append(dict(self.headers))
                self.close_connection = True
                step = outer.plan.pop(0) if outer.plan else outer.serve
                step(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/data/words.txt"

    @property
    def etag(self) -> str:
        return f'"{hashlib.md5(self.data).hexdigest()}"'

    def serve(self, handler: Any, cut: int | None = None, ranges: bool = True, etag: bool = True) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        start = 0
        if ranges and wanted and handler.headers.get("If-Range", self.etag) == self.etag:
            start = int(wanted[1])
            if start >= len(self.data):
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(self.data)}")
                handler.end_headers()
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(self.data) - 1}/{len(self.data)}")
        else:
            handler.send_response(200)
        handler.send_header("Content-Length", str(len(self.data) - start))
        if etag:
            handler.send_header("ETag", self.etag)
        handler.end_headers()
        body = self.data[start : len(self.data) if cut is None else start + cut]
        with contextlib.suppress(OSError):  # a killed client
            for at in range(0, len(body), 10_000):
                handler.wfile.write(body[at : at + 10_000])
                time.sleep(self.chunk_pause)

    def cut(self, size: int, **options: Any) -> Any:
        return lambda handler: self.serve(handler, cut=size, **options)

    def answer(self, status: int, **headers: str) -> Any:
        def step(handler: Any) -> None:
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        return step

    @property
    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for headers in self.seen]


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


def fetch(server: Server, folder: Path, sha256: str = SHA256) -> list[float]:
    waits: list[float] = []
    download(server.url, sha256, folder / "words.txt", wait=waits.append)
    assert (folder / "words.txt").read_bytes() == server.data
    assert [path.name for path in folder.iterdir()] == ["words.txt"]
    return waits


def test_plain_and_only_once(server: Server, tmp_path: Path) -> None:
    assert fetch(server, tmp_path) == []
    assert fetch(server, tmp_path) == []
    assert len(server.seen) == 1


def test_a_damaged_file_is_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_bytes(b"damaged")
    fetch(server, tmp_path)


def test_cut_connections_are_resumed(server: Server, tmp_path: Path) -> None:
    server.plan = [server.cut(100_000), server.cut(50_000), server.cut(1)]
    assert fetch(server, tmp_path) == [1.0, 1.0, 1.0]  # every byte sets the count back
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-", "bytes=150001-"]


def test_a_server_that_ignores_range_starts_over(server: Server, tmp_path: Path) -> None:
    server.plan = [server.cut(100_000), lambda handler: server.serve(handler, ranges=False)]
    fetch(server, tmp_path)


def test_a_file_that_changed_on_the_server_starts_over(server: Server, tmp_path: Path) -> None:
    old, server.data = server.data, b"old" * 50_000
    server.plan = [server.cut(90_000)]
    with pytest.raises(RuntimeError):
        download(server.url, SHA256, tmp_path / "words.txt", wait=_raise)
    server.data = old
    fetch(server, tmp_path)
    assert server.ranges == [None, "bytes=90000-"]


def test_without_a_validator_a_bad_mixture_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    old, server.data = server.data, b"old" * 50_000
    server.plan = [server.cut(90_000, etag=False)]
    with pytest.raises(RuntimeError):
        download(server.url, SHA256, tmp_path / "words.txt", wait=_raise)
    server.data = old
    fetch(server, tmp_path)
    assert server.ranges == [None, "bytes=90000-", None]


def _raise(seconds: float) -> None:
    raise RuntimeError("stopped in the first wait")


def test_a_kill_after_the_last_byte_costs_nothing(server: Server, tmp_path: Path) -> None:
    (tmp_path / "words.txt.part").write_bytes(DATA)
    fetch(server, tmp_path)
    assert server.ranges == ["bytes=300000-"]


def test_a_partial_file_longer_than_the_servers_is_dropped(server: Server, tmp_path: Path) -> None:
    (tmp_path / "words.txt.part").write_bytes(DATA + b"more")
    fetch(server, tmp_path)


def test_back_off_and_retry_after(server: Server, tmp_path: Path) -> None:
    date = formatdate(time.time() + 100, usegmt=True)
    server.plan = [
        server.answer(503),
        server.answer(500),
        server.answer(429, Retry_After="7"),
        server.answer(503, Retry_After=date),
    ]
    waits = fetch(server, tmp_path)
    assert waits[:3] == [1.0, 2.0, 7.0]
    assert 90 < waits[3] <= 100


def test_it_gives_up_and_keeps_what_it_has(server: Server, tmp_path: Path) -> None:
    server.plan = [server.cut(1000)] + [server.answer(503)] * 9
    waits: list[float] = []
    with pytest.raises(WordmillError, match=r"answers 503, 5 tries in vain; 1000 bytes are kept"):
        download(server.url, SHA256, tmp_path / "words.txt", wait=waits.append)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert (tmp_path / "words.txt.part").stat().st_size == 1000


def test_too_long_a_wait_is_left_to_the_user(server: Server, tmp_path: Path) -> None:
    server.plan = [server.answer(429, Retry_After="3600")]
    with pytest.raises(WordmillError, match="asks to wait 3600 s"):
        download(server.url, SHA256, tmp_path / "words.txt", wait=_raise)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_other_statuses_are_not_retried(server: Server, tmp_path: Path, status: int) -> None:
    server.plan = [server.answer(status)]
    with pytest.raises(WordmillError, match=f"answers {status}"):
        download(server.url, SHA256, tmp_path / "words.txt", wait=_raise)


def test_a_wrong_hash_is_an_error_and_the_file_is_not_kept(server: Server, tmp_path: Path) -> None:
    wrong = "0" * 64
    with pytest.raises(WordmillError, match=f"expected {wrong}, got {SHA256}"):
        download(server.url, wrong, tmp_path / "words.txt")
    assert list(tmp_path.iterdir()) == []
    assert len(server.seen) == 1


def test_redirects_stay_on_http(server: Server, tmp_path: Path) -> None:
    server.plan = [server.answer(302, Location="/elsewhere/words.txt")]
    fetch(server, tmp_path)
    for target in ("file:///etc/passwd", "ftp://127.0.0.1/words.txt"):
        server.plan = [server.answer(302, Location=target)]
        with pytest.raises(WordmillError, match=r"neither http nor https|is not allowed"):
            download(server.url, SHA256, tmp_path / "other.txt", wait=_raise)
    server.plan = [server.answer(302, Location=server.url)] * 20
    with pytest.raises(WordmillError, match="answers 302"):
        download(server.url, SHA256, tmp_path / "other.txt", wait=_raise)


def test_no_server_is_retried_and_reported(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    waits: list[float] = []
    with pytest.raises(WordmillError, match="no connection"):
        download(f"http://127.0.0.1:{port}/a.txt", SHA256, tmp_path / "a.txt", wait=waits.append)
    assert len(waits) == 5


def test_an_unknown_host_is_not_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(WordmillError, match="host not found"):
        download("http://words.invalid/a.txt", SHA256, tmp_path / "a.txt", wait=_raise)


def test_silence_counts_as_a_lost_connection(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url_module, "SILENCE", 0.2)
    hang = threading.Event()

    def silent(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "300000")
        handler.end_headers()
        hang.wait(5)

    server.plan = [silent]
    assert fetch(server, tmp_path) == [1.0]
    hang.set()


def test_a_killed_download_goes_on(server: Server, tmp_path: Path) -> None:
    server.chunk_pause = 0.05
    script = "import sys, pathlib, llm.corpus.url as u; u.download(*sys.argv[1:3], pathlib.Path('words.txt'))"
    child = subprocess.Popen(
        [sys.executable, "-c", script, server.url, SHA256],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    part = tmp_path / "words.txt.part"
    while child.poll() is None and not (part.exists() and part.stat().st_size > 50_000):
        time.sleep(0.01)
    child.kill()
    child.wait()
    arrived = part.stat().st_size
    assert 50_000 < arrived < len(DATA)
    server.chunk_pause = 0.0
    fetch(server, tmp_path)
    assert server.ranges == [None, f"bytes={arrived}-"]


def test_units_are_read_by_the_names_ending(server: Server, tmp_path: Path) -> None:
    server.data = b'{"text": "one"}\n{"text": "two"}\n'
    address = server.url.replace("words.txt", "some%20words.jsonl?download=1")
    digest = hashlib.sha256(server.data).hexdigest()
    config = CorpusConfig(source="url", urls=(address,), sha256=(digest,))
    [unit] = units(config, tmp_path)
    assert [(d.text, d.source) for d in unit.documents()] == [("one", address), ("two", address)]
    assert (tmp_path / "000-some_words.jsonl").exists()


def test_file_names_are_safe() -> None:
    assert file_name("http://x/a/b%20c.txt.gz?d=e/f.txt") == "b_c.txt.gz"
    assert "/" not in file_name("http://x/%2Fetc%2Fa.txt")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_is_one_line(server: Server, tmp_path: Path) -> None:
    (tmp_path / "words.txt.part").symlink_to("/dev/full")
    with pytest.raises(WordmillError, match=r"words\.txt\.part: No space left on device; make room"):
        download(server.url, SHA256, tmp_path / "words.txt", wait=_raise)
