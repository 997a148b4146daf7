"""Downloads from a mirror, and downloads whose digest nobody knows."""

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llm.corpus.build import build
from llm.corpus.config import UNVERIFIED, CorpusConfig
from llm.corpus.mirror import VARIABLE, mirrored
from llm.errors import ConfigError, WordmillError

URL = "https://example.org/texts/words.txt"


def test_where_a_mirror_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert mirrored(URL) == URL
    monkeypatch.setenv(VARIABLE, "http://mirror:8080/files/")
    assert mirrored(URL + "?v=1") == "http://mirror:8080/files/example.org/texts/words.txt?v=1"
    monkeypatch.setenv(VARIABLE, "/srv/files")
    with pytest.raises(WordmillError, match=r"^WORDMILL_MIRROR: '/srv/files' is not an http or https address"):
        mirrored(URL)


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file behind URL, on a mirror."""
    path = tmp_path / "served/example.org/texts/words.txt"
    path.parent.mkdir(parents=True)
    path.write_text("\n\n".join(f"paragraph {number}" for number in range(40)))
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv(VARIABLE, f"http://127.0.0.1:{server.server_address[1]}")
        yield path
        server.shutdown()
        thread.join()


def test_an_unverified_file_is_taken_and_its_digest_told(
    words: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def corpus(sha256: str, name: str) -> dict[str, object]:
        config = CorpusConfig(source="url", urls=(URL,), sha256=(sha256,), split_text="blank_lines", documents=0)
        return build(config, tmp_path / name, tmp_path / f"{name}-scratch")

    digest = hashlib.sha256(words.read_bytes()).hexdigest()
    unverified, verified = corpus(UNVERIFIED, "unverified"), corpus(digest, "verified")
    assert unverified["downloads"] == verified["downloads"] == {URL: digest}
    assert unverified["digest"] == verified["digest"]
    assert f"{digest} {URL}" in capfd.readouterr().err
    words.write_text("something else")
    with pytest.raises(WordmillError, match="wrong SHA-256"):
        corpus(digest, "changed")


def test_nothing_else_stands_for_a_digest() -> None:
    for sha256 in ("", "none", "UNVERIFIED", "0" * 63):
        with pytest.raises(ConfigError, match=r"is not 64 lower-case hex digits, nor unverified"):
            CorpusConfig(source="url", urls=(URL,), sha256=(sha256,))
