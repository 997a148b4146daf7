"""For every source of documents: all rows are kept or counted, and a limit says what it leaves unread."""

import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm.corpus.build import build
from llm.corpus.config import UNVERIFIED, CorpusConfig
from llm.corpus.mirror import VARIABLE
from llm.corpus.sources import SOURCES

ROWS = [*(f"document {number}" for number in range(40)), "document 3", "document 4", "document 3", " ", ""]
PARTS = 3  # files that hold the rows in turn


def records(folder: Path, suffix: str) -> list[Path]:
    paths = []
    for number in range(PARTS):
        rows = ROWS[number::PARTS]
        path = folder / f"part-{number}{suffix}"
        if suffix == ".parquet":
            pq.write_table(pa.table({"text": rows}), path)
        elif suffix == ".json":
            path.write_text(json.dumps([{"text": row} for row in rows]))
        elif suffix == ".jsonl":
            path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
        else:
            path.write_text("\n".join(rows))
        paths.append(path)
    return paths


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serves the folder of the test."""
    monkeypatch.delenv(VARIABLE, raising=False)
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def files(suffix: str, folder: Path, address: str) -> dict[str, Any]:
    paths = tuple(map(str, records(folder, suffix)))
    return {"source": "files", "paths": paths, "split_text": "line"}


def url(folder: Path, address: str) -> dict[str, Any]:
    urls = tuple(f"{address}/{path.name}" for path in records(folder, ".jsonl"))
    return {"source": "url", "urls": urls, "sha256": (UNVERIFIED,) * PARTS}


def hub(folder: Path, address: str) -> dict[str, Any]:
    (folder / "set/data").mkdir(parents=True)
    for number, path in enumerate(records(folder, ".parquet")):
        path.rename(folder / f"set/data/train-{number:05}-of-{PARTS:05}.parquet")
    return {"source": "hub", "dataset": str(folder / "set")}


GIVEN: dict[str, Callable[[Path, str], dict[str, Any]]] = {
    **{f"files{suffix}": partial(files, suffix) for suffix in (".txt", ".jsonl", ".json", ".parquet")},
    "url": url,
    "hub": hub,
}


def test_every_source_that_reads_rows_is_tried() -> None:
    assert {name.partition(".")[0] for name in GIVEN} == set(SOURCES) - {"stories"}


@pytest.mark.parametrize("name", GIVEN)
def test_rows_in_are_documents_and_counted_causes(
    name: str, tmp_path: Path, address: str, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = GIVEN[name](tmp_path, address)
    made = build(CorpusConfig(documents=0, **settings), tmp_path / "all", tmp_path / "all-scratch")
    assert (made["documents"], made["duplicates"], made["empty"]) == (40, 3, 2)
    assert made["documents"] + made["duplicates"] + made["empty"] == len(ROWS)
    assert sum(split["documents"] for split in made["splits"].values()) == made["documents"]
    assert "not read" not in capfd.readouterr().err
    limits: list[tuple[str, dict[str, Any]]] = [
        ("corpus.documents: 20", {"documents": 20}),
        ("corpus.max_bytes: 200", {"documents": 0, "max_bytes": 200}),
    ]
    for said, limit in limits:
        folder = tmp_path / said.partition(":")[0]
        build(CorpusConfig(**settings, **limit), folder, tmp_path / f"{folder.name}-scratch")
        told = capfd.readouterr().err
        assert f"{said} is reached in part 2 of 3" in told
        assert "1 further parts are not read" in told


def test_as_many_stories_as_are_asked_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = build(CorpusConfig(source="stories", documents=50), tmp_path / "corpus", tmp_path / "scratch")
    assert made["documents"] + made["duplicates"] + made["empty"] == 50
    assert "not read" not in capfd.readouterr().err
