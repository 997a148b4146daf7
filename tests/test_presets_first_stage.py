"""Every preset's first stage for a user who has the checkout alone: a server stands in the place of the network.

One loopback server stands for the hub (HF_ENDPOINT) and for all other addresses (WORDMILL_MIRROR). It serves small
texts, so the test puts their digests in the place of those of the real files. One process runs all presets, since the
hub's library takes seconds to import.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm.corpus.config import UNVERIFIED
from pipeline import presets
from stages import schema
from tests.test_presets_run import params_of

REPO = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (REPO / "presets").glob("*.yaml"))
TEXT = "\n\n\n".join(f"Chapter {n}\n\nThe {n}th part of a tale that is told in {n} words." for n in range(90))
DIGEST = hashlib.sha256(TEXT.encode()).hexdigest()
PARTS = {"sample-10BT": "sample/10BT", "plain_text": "plain_text", "": "data"}  # where a subset's files lie


def served_sets(folder: Path) -> dict[str, Path]:
    """A small data set for each that a preset names, laid out as the subset asks."""
    found = {}
    for name in NAMES:
        corpus = schema.check(params_of(presets.from_preset(name, {}))).corpus
        if corpus.source == "hub":
            place = folder / corpus.dataset
            part = PARTS[corpus.dataset_config]
            (place / part).mkdir(parents=True, exist_ok=True)
            rows = [f"document {row} of {corpus.dataset}" for row in range(60)]
            pq.write_table(pa.table({corpus.text_field: rows}), place / part / "train-00000-of-00001.parquet")
            if corpus.dataset_config:
                card = f"---\nconfigs:\n- config_name: {corpus.dataset_config}\n  data_files: {part}/*.parquet\n---\n"
                (place / "README.md").write_text(card)
            found[corpus.dataset] = place
    return found


class Network:
    """Answers as the hub does for the sets in `sets`, and with TEXT to everything else that ends in .txt."""

    def __init__(self, sets: dict[str, Path]) -> None:
        self.sets = sets
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body, headers = outer.answer(unquote(self.path.partition("?")[0]))
                status = 404 if body is None else 200
                body = b"{}" if body is None else body
                if body and (wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
                    start, end = int(wanted[1]), min(int(wanted[2] or len(body)), len(body) - 1)
                    headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
                    status, body = 206, body[start : end + 1]
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def answer(self, path: str) -> tuple[bytes | None, dict[str, str]]:
        self.asked.append(path)
        if path.endswith(".txt"):
            return TEXT.encode(), {}
        for name, folder in self.sets.items():
            if found := re.fullmatch(
                rf"(?:/api)?/datasets/{name}/(revision|tree|resolve)/([0-9a-f]{{40}})/?(.*)", path
            ):
                return self.of_set(name, folder, *found.groups())
        return None, {"X-Error-Code": "EntryNotFound"}

    def of_set(self, name: str, folder: Path, kind: str, commit: str, rest: str) -> tuple[bytes | None, dict[str, str]]:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in files]
        if kind == "resolve":
            headers = {"ETag": '"x"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            if rest in names:
                return (folder / rest).read_bytes(), headers
            return None, {"X-Error-Code": "EntryNotFound"}
        content: Any = {"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in names]}
        if kind == "tree":
            content = [self.entry(path, folder) for path in sorted((folder / rest).iterdir())]
        return json.dumps(content).encode(), {"Content-Type": "application/json"}

    def entry(self, path: Path, folder: Path) -> dict[str, Any]:
        size = path.stat().st_size if path.is_file() else 0
        kind = "directory" if path.is_dir() else "file"
        return {"type": kind, "path": path.relative_to(folder).as_posix(), "size": size, "oid": "0" * 40}


RUN = """
import sys
from pathlib import Path
from unittest.mock import MagicMock
from stages import download, params
for name in sys.argv[1:]:
    stage = MagicMock(scratch=Path("runs") / name)
    stage.scratch.mkdir(parents=True)
    download.run(params.load(download.Params, Path(f"{name}.yaml")), stage)
    Path("data/corpus/manifest.json").rename(f"{name}.json")
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Network]:
    """A checkout in which the first stage of every preset has run, and the network that it saw."""
    folder = tmp_path_factory.mktemp("alone") / "clone"
    folder.mkdir()
    (folder / "presets").symlink_to(REPO / "presets")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.chdir(folder)
    network = Network(served_sets(folder.parent / "served"))
    for name in NAMES:
        text = presets.from_preset(name, {})
        digests = schema.check(params_of(text)).corpus.sha256
        changes: dict[str, Any] = {"corpus.sha256": [d if d == UNVERIFIED else DIGEST for d in digests]}
        changes |= {"corpus.documents": 60} if name == "default" else {}
        Path(f"{name}.yaml").write_text(presets.from_preset(name, changes))
    monkeypatch.undo()
    thread = threading.Thread(target=network.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    places = {"PYTHONPATH": str(REPO), "HF_HOME": str(folder / "home")}
    try:
        done = subprocess.run(
            [sys.executable, "-c", RUN, *NAMES],
            env={**clean, **places, "HF_ENDPOINT": network.url, "WORDMILL_MIRROR": network.url},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
        )
    finally:
        network.http.shutdown()
        network.http.server_close()
        thread.join()
    assert done.returncode == 0, done.stderr
    (folder / "printed").write_text(done.stderr)
    return folder, network


@pytest.mark.parametrize("name", NAMES)
def test_the_first_stage_of_a_preset(name: str, clone: tuple[Path, Network]) -> None:
    folder, network = clone
    corpus = schema.check(presets.params.document(folder / f"{name}.yaml")).corpus
    made = json.loads((folder / f"{name}.json").read_text())
    assert made["documents"] > (0 if corpus.split_text == "file" else 40)
    assert made["source"] == corpus.source != "files"
    for url in corpus.urls:
        assert "/" + url.partition("://")[2] in network.asked
        assert made["downloads"][url] == DIGEST
    if corpus.source == "hub":
        assert made["revision"] == corpus.revision
        assert any(f"/datasets/{corpus.dataset}/resolve/{corpus.revision}/" in path for path in network.asked)


def test_what_is_not_verified_is_told(clone: tuple[Path, Network]) -> None:
    folder, _ = clone
    told = (folder / "printed").read_text()
    urls = schema.check(presets.params.document(folder / "books.yaml")).corpus.urls
    assert f"{len(urls)} of {len(urls)} files came without a SHA-256 to compare" in told
    for url in urls:
        assert f"{DIGEST} {url}" in told


def test_no_preset_names_a_file_that_a_user_lacks() -> None:
    for name in NAMES:
        text = (REPO / f"presets/{name}.yaml").read_text()
        assert "../" not in text, name
        assert not re.search(r"(: |\[|- )/", text), name
    for page in (REPO / "docs").glob("*.md"):
        if page.name != "LOG.md":  # the record of what was measured here
            assert not re.search(r"(--set|paths).*\.\./shared", page.read_text()), page.name
