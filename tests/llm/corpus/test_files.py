import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm.corpus import files
from llm.corpus.config import CorpusConfig
from llm.corpus.files import units
from llm.errors import WordmillError

TEXTS = ["One.\nTwo.", "Zwölf Boxkämpfer", "\u4f60\u597d " * 50, "end"]


def pack(path: Path, data: bytes) -> Path:
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    elif path.suffix == ".zst":
        half = len(data) // 2  # two frames: a file may be several joined
        data = b"".join(zstandard.compress(part) for part in (data[:half], data[half:]))
    path.write_bytes(data)
    return path


def read(*paths: Path | str, scratch: Path | None = None, **given: Any) -> list[str]:
    config = CorpusConfig(source="files", paths=tuple(map(str, paths)), **given)
    found = units(config, scratch or Path("/nonexistent"))
    return [document.text for unit in found for document in unit.documents()]


@pytest.fixture(autouse=True, params=[None, 3], ids=["usual chunks", "chunks of 3 bytes"])
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(files, "CHUNK", request.param)
        monkeypatch.setattr(files, "PACKED_CHUNK", request.param)


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet", ".txt"])
def test_every_kind_gives_the_same_documents(kind: str, packing: str, tmp_path: Path) -> None:
    if kind == ".parquet":
        pq.write_table(pa.table({"n": [1, 2, 3, 4], "text": TEXTS}), tmp_path / "plain", row_group_size=3)
        data = (tmp_path / "plain").read_bytes()
    elif kind == ".jsonl":
        data = "\r\n".join(json.dumps({"text": text}) for text in TEXTS).encode() + b"\n\n"
    elif kind == ".json":
        data = json.dumps([{"text": text} for text in TEXTS], indent=1, ensure_ascii=False).encode()
    else:
        data = "<|endoftext|>".join(f"\n{text}\n" for text in TEXTS).encode()
    path = pack(tmp_path / f"a{kind}{packing}", data)
    assert read(path, scratch=tmp_path, split_text="separator") == TEXTS


def test_plain_text_falls_apart_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\r\nb\r\r\n \t\r\nc\rd\n")
    assert read(path) == ["a\r\nb\r\r\n \t\r\nc\rd\n"]
    assert read(path, split_text="line") == ["a", "b", "", " \t", "c", "d", ""]
    assert read(path, split_text="blank_lines") == ["a\nb", "c\nd"]
    assert read(path, split_text="separator", separator="b\r\n") == ["a", " \t\nc\nd"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from("a\n\r |"), max_size=40))
def test_lines_are_those_of_universal_newlines(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    assert read(path, split_text="line") == path.read_text().split("\n")


def test_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": {"b": "deep"}, "a.b": "flat"}\n{"a": {"b": "deeper"}}\n"bare"\n{"a": {"b": null}}\n')
    assert read(path, text_field="a.b") == ["flat", "deeper", "bare", ""]
    table = pa.table({"m": [{"body": "one"}, {"body": None}], "x": [1, 2]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", scratch=tmp_path, text_field="m.body") == ["one", ""]


def test_order_is_that_of_paths_then_names_and_each_file_comes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b.txt", "a.txt", "c[1].txt", "sub/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    assert read("c[1].txt", "*.txt", "**/*.txt") == ["c[1].txt", "a.txt", "b.txt", "sub/d.txt"]


def test_malformed_utf8_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9 and \xff and well-formed \xef\xbf\xbd, and much more that is well-formed\n")
    [unit] = units(CorpusConfig(source="files", paths=(str(path),)), tmp_path)
    [document] = unit.documents()
    assert document.replaced == 2


BAD: dict[str, tuple[str, bytes, dict[str, Any], str]] = {
    "nul": ("a.txt", b"text\0text", {}, "not a text file (holds NUL bytes)"),
    "late nul": ("a.txt", b"x\n" * 40_000 + b"\0x", {"split_text": "line"}, "not a text file (holds NUL bytes)"),
    "not utf-8": ("a.txt", "Привет".encode("cp1251") * 9, {}, "of it is not UTF-8"),
    "utf-16": ("a.txt", "hello".encode("utf-16"), {}, "iconv"),
    "line": ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', {}, "a.jsonl line 3: not valid JSON"),
    "deep": ("a.jsonl", b"[" * 100_000, {}, "nested too deeply"),
    "field": ("a.jsonl", b'{"body": "a", "n": 1}', {}, "line 1: no field 'text' (found: body, n)"),
    "number": ("a.jsonl", b'{"text": 3}', {}, "line 1: field 'text' holds int"),
    "bare number": ("a.jsonl", b"3", {}, "found: a bare int"),
    "array": (
        "a.json",
        b'[{"text": "a"},\n{"text": "b"}',
        {},
        "line 2: not valid JSON: expected a comma",
    ),
    "comma": ("a.json", b'["a"\n"b"]', {}, "line 2: not valid JSON: expected a comma"),
    "cut": ("a.json", b'["a",', {}, "line 1: not valid JSON"),
    "after": ("a.json", b'["a"]\n x', {}, "something follows the end"),
    "element": ("a.json", b'["a",\n nope]', {}, "line 2: not valid JSON"),
    "parquet": ("a.parquet", b"not parquet", {}, "cannot be read"),
    "gz": ("a.txt.gz", gzip.compress(b"text" * 99)[:-9], {}, "cannot be read"),
    "not gz": ("a.txt.gz", b"text", {}, "cannot be read"),
    "zst": ("a.txt.zst", zstandard.compress(bytes(range(256)) * 9)[:-9], {}, "ends too early"),
    "not zst": ("a.txt.zst", b"text", {}, "cannot be read"),
    "kind": ("a.docx", b"text", {}, "unknown kind of file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_one_line(case: str, tmp_path: Path) -> None:
    name, data, settings, message = BAD[case]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(WordmillError) as caught:
        read(tmp_path / name, scratch=tmp_path, **settings)
    assert message in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_columns_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(WordmillError, match=r"none\.txt: no such file"):
        read(tmp_path / "none.txt")
    with pytest.raises(WordmillError, match="no file matches"):
        read(tmp_path / "*.txt")
    with pytest.raises(WordmillError, match="is a folder"):
        read(tmp_path)
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(WordmillError, match=r"a\.parquet: no column 'text' \(found: body\); set corpus\.text_field"):
        read(tmp_path / "a.parquet", scratch=tmp_path)


def test_a_document_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_DOCUMENT", 100)
    path = tmp_path / "a.txt"
    path.write_text("word\n" * 50)
    assert len(read(path, split_text="line")) == 51
    with pytest.raises(WordmillError, match="split it"):
        read(path)
