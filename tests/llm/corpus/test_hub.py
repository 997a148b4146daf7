"""Data sets as the hub lays them out: folders on this machine, and a small hub on loopback."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm.corpus import hub
from llm.corpus.build import build
from llm.corpus.config import CorpusConfig
from llm.corpus.documents import documents
from llm.corpus.hub import open_dataset
from llm.corpus.normalise import SPLITS
from llm.errors import WordmillError

ROOT = Path(__file__).parents[3]
SHARED = Path(os.environ.get("WORDMILL_SHARED_DATA", ROOT / "../shared/data"))
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = """---
license: cc0-1.0
configs:
- config_name: default
  data_files: data/*.parquet
- config_name: small
  data_files: data/train-00001*.parquet
---
"""


def lay_out(folder: Path, files: int = 3, rows: int = 40) -> Path:
    """Parquet shards and a card, as on the hub."""
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    for file in range(files):
        texts = [f"document {row} of file {file}" for row in range(rows)]
        name = f"train-{file:05}-of-{files:05}.parquet"
        pq.write_table(pa.table({"id": list(range(rows)), "text": texts}), folder / "data" / name, row_group_size=16)
    return folder


def config(folder: Path, **given: Any) -> CorpusConfig:
    return CorpusConfig(**{"source": "hub", "dataset": str(folder), "documents": 0, **given})


def test_units_are_the_files_in_order(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "set")
    found = open_dataset(config(folder), tmp_path)
    names = [f"data/train-0000{n}-of-00003.parquet" for n in range(3)]
    assert [unit.name.split(" ")[0] for unit in found.units] == names
    [first, *_] = found.units[1].documents()
    assert first == ("document 0 of file 1", "data/train-00001-of-00003.parquet", 0)
    assert sum(1 for unit in found.units for _ in unit.documents()) == 120


def test_a_subset(tmp_path: Path) -> None:
    [unit] = open_dataset(config(lay_out(tmp_path / "set"), dataset_config="small"), tmp_path).units
    assert len(list(unit.documents())) == 40


def test_limits_and_manifest(tmp_path: Path) -> None:
    made = build(config(lay_out(tmp_path / "set"), documents=50), tmp_path / "corpus", tmp_path / "scratch")
    assert made["documents"] == 50
    assert made["settings"]["dataset"] == "set"
    assert not list((tmp_path / "corpus").rglob("*.half"))


def cache_of(folder: Path, cache: Path) -> Path:
    """The same data set as the hub's own cache has it: links to files that are named by their digests."""
    snapshot = cache / "datasets--owner--words" / "snapshots" / COMMIT
    blobs = cache / "datasets--owner--words" / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        (blobs / f"{number:064}").write_bytes(path.read_bytes())
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / f"{number:064}", link.parent))
    return snapshot


def test_folders_of_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = lay_out(tmp_path / "set")
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "README.md").write_text((folder / "README.md").read_text())
    (tmp_path / "odd" / "data").symlink_to(folder / "data")
    monkeypatch.chdir(tmp_path)
    expected = [document for unit in open_dataset(config(folder), tmp_path).units for document in unit.documents()]
    for given in (cache_of(folder, tmp_path / "cache"), tmp_path / "link", Path("./link"), tmp_path / "odd"):
        found = open_dataset(
            config(folder, dataset=str(given) if given.is_absolute() else f"./{given}"), tmp_path
        ).units
        assert [document for unit in found for document in unit.documents()] == expected


def test_data_files_at_another_address(tmp_path: Path) -> None:
    served = lay_out(tmp_path / "served")
    handler = partial(SimpleHTTPRequestHandler, directory=served)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            address = f"http://127.0.0.1:{http.server_address[1]}/data/train-00000-of-00003.parquet"
            (tmp_path / "set").mkdir()
            card = f"---\nconfigs:\n- config_name: default\n  data_files: {address}\n---\n"
            (tmp_path / "set/README.md").write_text(card)
            [unit] = open_dataset(config(tmp_path / "set"), tmp_path).units
            assert [document.text for document in unit.documents()][:1] == ["document 0 of file 0"]
        finally:
            http.shutdown()
            thread.join()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not on this machine")
def test_the_books_through_datasets_and_through_pyarrow(tmp_path: Path) -> None:
    paths = sorted((SHARED / "books").glob("*.parquet"))
    expected = [text for path in paths for text in pq.read_table(path)["text"].to_pylist()]
    found = open_dataset(config(SHARED / "books"), tmp_path)
    assert [document.text for unit in found.units for document in unit.documents()] == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dataset": "./nowhere"}, "no such folder"),
        ({"dataset_config": "large"}, "large"),
        ({"dataset_split": "validation"}, "no split 'validation'; it has train"),
        ({"text_field": "body"}, "row 1: no field 'body' (found: id, text)"),
        ({"text_field": "id"}, "row 1: field 'id' holds int"),
    ],
)
def test_bad_settings_are_one_line(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    settings = {"folder": lay_out(tmp_path / "set"), **given}
    with pytest.raises(WordmillError) as caught:
        build(config(**settings), tmp_path / "corpus", tmp_path / "scratch")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_or_an_empty_data_set_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(WordmillError) as caught:
        open_dataset(config(tmp_path / "empty"), tmp_path)
    assert "\n" not in str(caught.value)
    folder = lay_out(tmp_path / "set")
    [*_, last] = sorted(folder.glob("data/*"))
    last.write_bytes(b"PAR1 this is none PAR1")
    with pytest.raises(WordmillError, match="train-00002-of-00003") as caught:
        build(config(folder), tmp_path / "corpus", tmp_path / "scratch")
    assert "\n" not in str(caught.value)


def start(command: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """A fresh interpreter: the hub's libraries read the environment once."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    script = f"""
import sys
from pathlib import Path
from llm.corpus.build import build
from llm.corpus.config import CorpusConfig
from llm.errors import WordmillError
config = lambda **given: CorpusConfig(source="hub", dataset="owner/words", revision="{COMMIT}", documents=0, **given)
try:
    {command}
except WordmillError as error:
    sys.exit(str(error))
"""
    return subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=cwd,
        env={**clean, "PYTHONPATH": str(ROOT), "HF_HOME": str(cwd / "home"), **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def run(command: str, cwd: Path, **environment: str) -> tuple[int, str]:
    """The same to its end: its status and what it printed on standard error."""
    with start(command, cwd, **environment) as child:
        _, printed = child.communicate(timeout=600)
        return child.returncode, printed


BUILD = 'build(config(), Path("corpus"), Path("scratch"), 0.0)'


def test_offline_is_one_line_within_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    status, printed = run(BUILD, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert status == 1
    assert time.monotonic() - began < hub.PATIENCE
    assert re.fullmatch(r"data set owner/words: the hub cannot be reached \(.*\); go online, .*\n", printed)


def test_offline_by_setting_is_one_line(tmp_path: Path) -> None:
    _, printed = run(BUILD, tmp_path, HF_HUB_OFFLINE="1")
    assert re.fullmatch(r"data set owner/words: HF_HUB_OFFLINE is set; .*\n", printed)


class Hub:
    """The few answers of the hub's protocol that reading a data set takes, over one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.status = 200
        self.asked: list[str] = []
        self.held = ""  # a file that is not given out
        self.released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def answer(self, handler: Any) -> None:
        path = handler.path.partition("?")[0]
        self.asked.append(f"{handler.command} {handler.path}")
        if self.status != 200:
            code = {404: "RevisionNotFound", 403: "GatedRepo", 401: "RepoNotFound"}.get(self.status, "")
            return self.send(handler, self.status, b"{}", {"X-Error-Code": code})
        if path in (f"/api/datasets/owner/words/revision/{COMMIT}", "/api/datasets/owner/words"):
            siblings = [{"rfilename": name} for name in self.names()]
            card = {"license": "cc0-1.0"}
            return self.json(handler, {"id": "owner/words", "sha": COMMIT, "siblings": siblings, "cardData": card})
        if path.startswith(f"/api/datasets/owner/words/tree/{COMMIT}"):
            under = path.partition(COMMIT)[2].strip("/")
            return self.json(handler, [self.entry(path) for path in sorted((self.folder / under).iterdir())])
        if path.startswith(f"/datasets/owner/words/resolve/{COMMIT}/"):
            name = path.partition(f"{COMMIT}/")[2]
            if name in self.names():
                if name == self.held and handler.command == "GET":
                    self.released.wait(20)
                with contextlib.suppress(OSError):  # a killed client
                    self.file(handler, name)
                return None
        return self.send(handler, 404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def names(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())

    def entry(self, path: Path) -> dict[str, Any]:
        kind = "directory" if path.is_dir() else "file"
        size = path.stat().st_size if path.is_file() else 0
        return {"type": kind, "path": path.relative_to(self.folder).as_posix(), "size": size, "oid": "0" * 40}

    def json(self, handler: Any, content: Any) -> None:
        self.send(handler, 200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def file(self, handler: Any, name: str) -> None:
        data = (self.folder / name).read_bytes()
        headers = {"ETag": '"x"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", "")):
            start, end = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            self.send(handler, 206, data[start : end + 1], headers)
        else:
            self.send(handler, 200, data, headers)

    def send(self, handler: Any, status: int, body: bytes, headers: dict[str, str]) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)


@pytest.fixture
def small_hub(tmp_path: Path) -> Iterator[Hub]:
    served = Hub(lay_out(tmp_path / "served"))
    thread = threading.Thread(target=served.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.http.shutdown()
    served.http.server_close()
    thread.join()


def test_a_data_set_of_a_hub(small_hub: Hub, tmp_path: Path) -> None:
    status, printed = run(BUILD, tmp_path, HF_ENDPOINT=small_hub.url)
    assert status == 0, printed
    made = json.loads((tmp_path / "corpus" / "manifest.json").read_text())
    assert (made["revision"], made["licence"], made["documents"]) == (COMMIT, "cc0-1.0", 120)
    local = build(config(tmp_path / "served"), tmp_path / "local", tmp_path / "local-scratch")
    assert made["digest"] == local["digest"]


def test_a_kill_resumes_at_the_file_where_it_came(small_hub: Hub, tmp_path: Path) -> None:
    small_hub.held = "data/train-00001-of-00003.parquet"
    state = tmp_path / "scratch" / "corpus" / "state.json"
    with start(BUILD, tmp_path, HF_ENDPOINT=small_hub.url) as child:
        while child.poll() is None and not state.exists():
            time.sleep(0.01)
        child.kill()
    small_hub.held = ""
    small_hub.released.set()
    status, printed = run(BUILD, tmp_path, HF_ENDPOINT=small_hub.url)
    assert status == 0, printed
    assert printed.startswith("corpus: goes on after 40 documents\n")
    build(config(tmp_path / "served"), tmp_path / "local", tmp_path / "local-scratch")
    for split in SPLITS:
        assert list(documents(tmp_path / "corpus" / split)) == list(documents(tmp_path / "local" / split))


@pytest.mark.parametrize(
    ("status", "message"),
    [(404, f"has no commit {COMMIT}"), (403, "access is granted on its page"), (401, "unknown to the hub or private")],
)
def test_what_the_hub_refuses_is_one_line(small_hub: Hub, tmp_path: Path, status: int, message: str) -> None:
    small_hub.status = status
    ended, printed = run(BUILD, tmp_path, HF_ENDPOINT=small_hub.url)
    assert ended == 1
    assert message in printed
    assert printed.count("\n") == 1
